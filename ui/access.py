"""Who opens what. On one's own computer everything opens and is called what it is; an app that is served to others
opens what was named for them and the hub, shows no path of its machine, and keeps what each visitor makes to that
visitor.

It is served when its command or its container says so (LOL_SERVED, LOL_ROOTS), or its address is not this computer's
own.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit import config

from lol_core.cli.app import COLLECTION, ROOT, ROOTS, SERVED
from lol_core.collections.cache import cache_folder
from lol_core.collections.opening import open_source, so_far
from lol_core.collections.page import Page
from lol_core.collections.samples import sample_zoos, samples_folder
from lol_core.collections.served import SCHEME, Roots, is_within
from lol_core.collections.source import Source
from lol_core.collections.trimming import trim
from lol_core.core.progress import SILENT, Reporter

_PATH = re.compile(
    r"(?:…|file://|~\w*|(?<![\w/.~])(?:[A-Za-z]:)?)[/\\](?:[^\s/\\'\"<>|:*?`]+[/\\])+([^\s/\\'\"<>|:*?`,;)]*)"
)
"""An absolute path of at least two parts, or one below a home, and its last part."""
_MOST_MB = 1e6


@dataclass(frozen=True)
class Limits:
    """What one server does for its visitors. upload_mb: of a file, and of all files dropped at once; job_minutes: how
    long one piece of work may take; jobs: pieces at once, of all visitors, of those that take turns (the waiting ones
    included) and of the others; hours: after which what an idle visitor made is deleted; hub_gb: of what was downloaded
    from the hub, drawn or indexed that is kept.
    """

    upload_mb: int | None = None
    job_minutes: float = math.inf
    jobs: float = math.inf
    hours: float = math.inf
    hub_gb: float = math.inf

    @classmethod
    def served(cls) -> Limits:
        """Those of the environment."""
        return cls(
            max(1, round(min(_number("LOL_UPLOAD_MB", 50), _MOST_MB))),
            _number("LOL_JOB_MINUTES", 15),
            _number("LOL_JOBS", 30),
            _number("LOL_KEEP_HOURS", 4),
            _number("LOL_HUB_GB", 20),
        )


class Access:
    """One's own computer."""

    served = False
    limits = Limits()

    @property
    def zoos(self) -> dict[str, str]:
        """Name → address of the collections that are offered."""
        return {name: str(folder.resolve()) for name, folder in sample_zoos().items()}

    @property
    def first(self) -> str:
        """The address of what opens first; empty where there is nothing."""
        return os.environ.get(COLLECTION) or next(iter(self.zoos.values()), "")

    @property
    def models(self) -> list[Path]:
        """Folders of the trained models that come with what can be opened."""
        return _models(samples_folder() / "checkpoints")

    @property
    def bases(self) -> dict[str, Path]:
        """Name → folder of the base models that come with what can be opened."""
        return _bases(samples_folder().glob("*/"))

    def sample(self, name: str) -> str | None:
        """The address of a sample zoo; None where it cannot be opened."""
        return self.zoos.get(name)

    def open(self, address: str, labels: str, reporter: Reporter = SILENT) -> Source:
        """The collection at an address. Raises ZooError, and Stopped when the reporter says so."""
        return open_source(address, labels or None, reporter=reporter)

    def so_far(self, address: str, limit: int) -> Page | None:
        """What is known of a collection that is being opened; None where that is not told."""
        return so_far(address, limit)

    def dropped(self, path: Path) -> Source:
        """The LoRAs in a zip file that was dropped here; what is kept of it lies beside it. Raises ZooError."""
        return open_source(path, cache=path.parent / ".index")

    def text(self, text: str) -> str:
        """A text as a page, an export or a log may show it."""
        return text

    def visitor_folder(self) -> Path | None:
        """A new folder for what one visitor makes; None where that is kept with the rest."""
        return None


class Served(Access):
    """A server with its named places: collections, base models, and folders of trained models. first: the address of
    what opens first, among them or on the hub, where it is not the first of them.
    """

    served = True

    def __init__(self, roots: Roots, first: str, limits: Limits):
        self.roots, self.limits, self._first = roots, limits, first

    @cached_property
    def zoos(self) -> dict[str, str]:
        other = {*_bases(self.roots.places.values()).values(), *(path.parent for path in self.models)}
        return {name: f"{SCHEME}{name}" for name, place in self.roots.places.items() if place not in other}

    @property
    def first(self) -> str:
        return self._first or next(iter(self.zoos.values()), "")

    @cached_property
    def models(self) -> list[Path]:
        return [*super().models, *(path for place in self.roots.places.values() for path in _models_within(place))]

    @cached_property
    def bases(self) -> dict[str, Path]:
        return super().bases | _bases(self.roots.places.values())

    def sample(self, name: str) -> str | None:
        folder = sample_zoos().get(name)
        return None if folder is None else self.roots.address(folder)

    def open(self, address: str, labels: str, reporter: Reporter = SILENT) -> Source:
        """Apart from what the owner's own app keeps, such as what is private on the hub."""
        cache, own = _cache(), cache_folder()
        trim(
            self.limits.hub_gb,
            repositories=cache / "hub",
            files=[cache / "members", cache / "previews", own / "images", own / "written"],
            indexes=cache / "index",
        )
        return self.roots.open(address, labels or None, cache, reporter)

    def so_far(self, address: str, limit: int) -> Page | None:
        return None

    def text(self, text: str) -> str:
        return _PATH.sub(r"…/\1", self._known_places.sub("…", self.roots.text(text)))

    @cached_property
    def _known_places(self) -> re.Pattern[str]:
        """Folders of this machine, whatever stands in their names, the longest first."""
        places = {Path.home(), cache_folder(), Path(sys.prefix), ROOT, Path(tempfile.gettempdir())}
        names = {str(path) for place in places for path in (place, place.resolve()) if path.name}
        longest_first = [name for _, name in sorted(((len(name), name) for name in names), reverse=True)]
        return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, longest_first))})(?![\w.-])")

    def visitor_folder(self) -> Path:
        """It is deleted with the session, or with the next visitor when it was unused for too long."""
        visitors = _cache() / "visitors"
        visitors.mkdir(parents=True, exist_ok=True)
        for folder in visitors.iterdir():
            with suppress(FileNotFoundError):  # another visitor's beginning deletes them too
                if folder.stat().st_mtime < time.time() - 3600 * self.limits.hours:
                    shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=visitors))


def access() -> Access:
    """What holds for this process."""
    roots, first = os.environ.get(ROOTS, ""), os.environ.get(COLLECTION, "")
    if not (roots or os.environ.get(SERVED) or not _of_this_computer(st.get_option("server.address"))):
        return _OWN
    return _served(roots, first, Limits.served())


_OWN = Access()


@cache
def _served(roots: str, first: str, limits: Limits) -> Served:
    words = [word for word in roots.split(os.pathsep) if word]
    if first and "://" not in first:
        words.insert(0, first)
        first = ""
    named = Roots.named(words or map(str, sample_zoos().values()))
    made = Served(named, first, limits)
    _prepare(made)
    return made


def _prepare(served: Served) -> None:
    """Keep the process from telling what the pages do not: in errors, in its log, and with the owner's token."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    constants.HF_HUB_CACHE = str(_cache() / "hub")
    st.set_option("client.showErrorDetails", "none")
    config.set_option("logger.enableRich", False)  # it prints past the log
    config.set_option("server.maxUploadSize", served.limits.upload_mb)
    logging.setLogRecordFactory(_Records(served, logging.getLogRecordFactory()))
    logging.captureWarnings(True)


@dataclass(frozen=True)
class _Records:
    """Makes records of the log that show no path of the machine."""

    access: Access
    make: Any

    def __call__(self, *args: Any, **named: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.make(*args, **named)
        if record.name != "uvicorn.access":  # which is about URLs
            try:
                message = record.getMessage()
            except Exception:  # its arguments do not fit its words
                message = str(record.msg)
            record.msg, record.args = self.access.text(message), ()
            if record.exc_info:
                record.exc_text = self.access.text("".join(traceback.format_exception(*record.exc_info)))
        return record


def _cache() -> Path:
    """Where a served app keeps what it reads and what its visitors make."""
    return cache_folder() / "served"


def _of_this_computer(address: str | None) -> bool:
    """Whether nobody else reaches a server there. Without an address it answers to all."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def _number(name: str, otherwise: float) -> float:
    """A number of the environment, above zero."""
    return _above_zero(name, os.environ.get(name, ""), otherwise)


@cache
def _above_zero(name: str, value: str, otherwise: float) -> float:
    try:
        number = float(value or otherwise)
    except ValueError:
        number = 0.0
    if number > 0:
        return number
    logging.getLogger(__name__).warning("%s is %r, no number above zero; %g holds.", name, value, otherwise)
    return otherwise


def _models(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/checkpoint.json"))


def _models_within(place: Path) -> list[Path]:
    """Those of a resolved place from which no link leads out of it."""

    def stays(model: Path) -> bool:
        with suppress(OSError):
            return all(is_within(path, place) for path in (model, *model.iterdir()))
        return False

    return list(filter(stays, _models(place)))


def _bases(folders: Iterable[Path]) -> dict[str, Path]:
    return {folder.name: folder for folder in folders if (folder / "model_index.json").is_file()}
