"""What a server opens for others: folders and archives that were named, by addresses that say nothing of the machine.

A visitor who may put files into a named folder gets no more of the machine through it: nothing is read through a link
that leads out of what was named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import BinaryIO

from lol_core.collections import archive, hub
from lol_core.collections.blob import LocalFile
from lol_core.collections.files import FileSource, Listing, OpenOptions
from lol_core.collections.hub_address import SCHEME as HUB
from lol_core.collections.layouts import as_rows, with_own_labels
from lol_core.collections.names import named_place, user_path
from lol_core.collections.remote import of_page
from lol_core.collections.source import Source
from lol_core.collections.waiting import stopped_by
from lol_core.collections.walk import ARCHIVES, child_id, descend
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, ZooError, needing

SCHEME = "zoo://"
LEADS_OUT = "A link that leads out of what is served here. It was not opened."


def is_within(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, is within a resolved place."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, what is no text
        return False


@dataclass(frozen=True, slots=True)
class ServedFile(LocalFile):
    """A file that is read only as long as no link leads from it out of a place. root: that place, resolved."""

    root: Path = Path()

    def open(self) -> BinaryIO:
        """Raises LoRAFormatError when it has changed, or is no longer within its place."""
        if not is_within(self.path, self.root):
            raise LoRAFormatError(LEADS_OUT)
        return LocalFile.open(self)

    glance = open


@dataclass(frozen=True)
class Roots:
    """Name → a resolved folder or archive, and everything below it."""

    places: Mapping[str, Path]

    @classmethod
    def named(cls, wanted: Iterable[str]) -> Roots:
        """Of words such as `/data/faces` or `people=/data/faces`. Of two places of one name the second gets a number;
        one that is not there now may come later.
        """
        places: dict[str, Path] = {}
        for word in wanted:
            name, path = named_place(word)
            place = user_path(path).resolve()
            stem = name or place.name or "root"
            free = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
            places[next(name for name in free if name not in places)] = place
        return cls(places)

    def address(self, place: Path) -> str | None:
        """What a place is called; None where it is not served."""
        place = place.resolve()
        for name, root in self.places.items():
            if place.is_relative_to(root):
                below = place.relative_to(root).as_posix()
                return f"{SCHEME}{name}" if below == "." else f"{SCHEME}{name}/{below}"
        return None

    def find(self, address: str) -> Path:
        """What lies at an address, with or without its scheme. Raises ZooError, in the same words for what is not there
        and for what may not be seen.
        """
        name, *parts = address.removeprefix(SCHEME).rstrip("/").split("/")
        root = self.places.get(name)
        if root is not None and not {"", ".", ".."} & set(parts) and "\0" not in address:
            place = root.joinpath(*parts)
            if is_within(place, root) and os.path.exists(place):
                return place.resolve()
        offered = ", ".join([*self.places, f"{HUB}owner/name"])
        raise ZooError(f"{address}: not among what is served here. There are {offered}.")

    def text(self, text: str) -> str:
        """A text with the addresses of served places for their paths."""
        for name, root in self.places.items():
            text = text.replace(str(root), f"{SCHEME}{name}")
        return text

    def open(
        self, address: str, labels: str | None = None, cache: Path | None = None, reporter: Reporter = SILENT
    ) -> Source:
        """The collection at an address: of a named place, or of the hub. labels: the address of a table.

        Raises ZooError when it is neither, and Stopped when the reporter says so.
        """
        options = OpenOptions(str(self.find(labels)) if labels else None, cache, reporter)
        try:
            with needing("hub"), stopped_by(reporter):
                if (spot := of_page(address) or address).startswith(HUB):
                    source = hub.open_hub(spot, options)
                else:
                    place = self.find(address)
                    listing = self._listing(place, cache, reporter)
                    address = self.address(place) or address
                    name = archive.stem_of(address.rpartition("/")[2])
                    source = FileSource.open(address, name, listing, options)
                source = with_own_labels(as_rows(source), reporter)
        except ZooError as error:
            raise type(error)(self.text(str(error))) from error
        if labels and isinstance(source, FileSource):
            source = replace(source, labels_path=Path(labels.removeprefix(SCHEME)))
        return source

    def _listing(self, place: Path, cache: Path | None, reporter: Reporter) -> Listing:
        """The files of a folder, or the members of an archive, of a named place. Links to files within the place are
        followed, others refused, and links to folders not looked into. Of a hub's cache and of a folder that cannot be
        read there is what `walk.candidates` has.
        """
        if place.is_file():
            if not place.name.lower().endswith(ARCHIVES):
                raise ZooError(f"{place.name}: neither a folder nor an archive. Open the folder that it lies in.")
            return archive.list_archive(place, cache, reporter)
        root = next(root for root in self.places.values() if place.is_relative_to(root))
        files: dict[str, ServedFile] = {}
        refused: dict[str, str] = {}
        waiting = [("", "")]
        while waiting:
            reporter.check("Nothing was read yet.")
            below, id = waiting.pop()
            before = f"{below}/" if below else ""
            if not is_within(place / below, root):  # a snapshot that is a link
                continue
            try:
                with os.scandir(place / below) as listing:
                    entries = list(listing)
            except OSError as error:
                reason = f"{error.strerror}. Nothing in it is part of the collection."
                refused[f"{id or '.'}/"] = f"The folder cannot be read: {reason}"
                continue
            for entry in entries:
                path, own = Path(entry.path), child_id(id, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    waiting += descend(place, before, entry.name, id)
                elif entry.is_symlink() and not is_within(path, root):
                    refused[own] = LEADS_OUT
                elif path.is_file():
                    known = LocalFile.of(path)
                    files[own] = ServedFile(known.path, known.size, known.time, root)
        return Listing(files, refused)
