"""Which files of a folder may be LoRAs. Nothing is opened."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from lol_core.collections.names import printable
from lol_core.collections.sidecar import beside, may_be_beside
from lol_core.core.progress import SILENT, Reporter
from lol_core.formats import SUFFIXES, configs_of

OTHER_FILES = {
    "optimizer.pt": "An optimizer's state, not a LoRA: what a training run needs to go on.",
    "optimizer.bin": "An optimizer's state, not a LoRA: what a training run needs to go on.",
    "scheduler.pt": "A learning-rate schedule's state, not a LoRA.",
    "scheduler.bin": "A learning-rate schedule's state, not a LoRA.",
    "scaler.pt": "A gradient scaler's state, not a LoRA.",
    "training_args.bin": "The settings of a training run, not a LoRA.",
    "rng_state.pth": "The random numbers' state of a training run, not a LoRA.",
}
"""Files that training runs leave beside LoRAs, known by their names: opening them would take long and tell no more."""
_NUMBER = re.compile(r"_\d+(?=\.pth$)")
"""Of the process that left a file."""
ARCHIVES = (".zip", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar", ".tgz")
ARCHIVE = "An archive, not a LoRA: open it by its own address, or, where it lies in another archive, unpack it first."
LISTED = (*SUFFIXES, *ARCHIVES)

BETWEEN = 500
"""Folders between two looks at whether to stop."""
UNKNOWN = -2
"""The size of a file that is not known before it is opened."""
_SPECIAL = {stat.S_IFIFO: "A named pipe", stat.S_IFSOCK: "A socket"}
_NAME = attrgetter("name")
_MOST = ".safetensors"
"""What most files are called, of which a folder may hold 100,000: asked first."""
_HUB_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--(.+)")
_SHARD = re.compile(r"(.+-)(\d+)(-of-0*(\d{1,4})\.\w+)")


class Candidate(NamedTuple):
    """A file that may be a LoRA. id: its path below the folder, as text that can be stored and shown; place: the path
    itself, which may hold bytes that are no UTF-8, or lead through a hub's cache. mtime: seconds; beside: names of the
    files beside it that bear on it (configuration, sidecars), and mark: their sizes and times, so that a change of
    them counts as its own; reason: why it is not worth opening, None when it is.
    """

    id: str
    place: str
    size: int
    mtime: float
    beside: tuple[str, ...] = ()
    mark: str = ""
    reason: str | None = None


def candidates(folder: Path, reporter: Reporter = SILENT) -> list[Candidate]:
    """The files that may be LoRAs: those of each folder by name, then its subfolders by name. Raises Stopped when the
    reporter says so.

    Links are followed, and what is reached twice is listed once, where it lies rather than where a link leads to it.
    In a hub's cache each repository has the files of one snapshot, under the repository's name. What cannot be
    listed, such as a folder without permission, is there with its reason.
    """
    walk = _Walk(folder, reporter)
    walk.below("", "")
    while walk.links:  # after what is no link, so that a file has the id of its own place
        walk.follow(*walk.links.pop(0))
    return sorted(walk.candidates, key=in_order) if walk.linked else walk.candidates


def within(folder: Path) -> Path:
    """Where the files of a folder lie: of one repository in a hub's cache in its snapshot, else in itself."""
    folder = folder.absolute()
    snapshot = _snapshot(folder.parent, folder.name) if _HUB_REPOSITORY.fullmatch(folder.name) else None
    return folder.parent / snapshot if snapshot else folder


def name_of(folder: Path) -> str:
    """What a folder is called: a snapshot in a hub's cache as its repository, without the owner."""
    repository = folder.parent.parent.name if folder.parent.name == "snapshots" else ""
    hub = _HUB_REPOSITORY.fullmatch(repository)
    return printable(hub[1].rpartition("--")[2] if hub else folder.name)


def reason_of(name: str) -> str | None:
    """Why a file whose name is LISTED is not worth opening, None when it is."""
    if name.endswith(_MOST):
        return None
    if name.lower().endswith(ARCHIVES):
        return ARCHIVE
    return OTHER_FILES.get(_NUMBER.sub("", name))


def in_order(candidate: Candidate) -> tuple[tuple[int, str], ...]:
    """By this key the files of each folder come by name, then its subfolders."""
    *folders, name = candidate.id.split("/")
    return (*((1, part) for part in folders), (0, name))


@dataclass
class _Walk:
    root: Path
    reporter: Reporter
    candidates: list[Candidate] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    linked: bool = False
    folders: int = 0

    def __post_init__(self) -> None:
        self.top = os.fspath(self.root)

    def below(self, place: str, id: str) -> None:
        """Everything below a folder, in order. place: its path below the root, "" for the root itself; id: of its
        files.
        """
        waiting = [(place, id)]
        while waiting:
            place, id = waiting.pop()
            self.folders += 1
            if self.folders % BETWEEN == 0:
                self.reporter.show(f"Looking for files: {self.folders:,} folders", 0.0)
                self.reporter.check("No header was read this time; what was read before is kept.")
            waiting += reversed(self.folder(place, id))

    def folder(self, place: str, id: str) -> list[tuple[str, str]]:
        """The files of one folder; returns its subfolders, by name."""
        where = f"{self.top}/{place}"  # paths as objects take four tenths of the time
        try:
            status = os.stat(where)
            if status.st_ino in self.seen[status.st_dev]:
                return []
            self.seen[status.st_dev].add(status.st_ino)
            with os.scandir(where) as listing:
                entries = sorted(listing, key=_NAME)
        except OSError as error:
            reason = f"The folder cannot be read: {error.strerror or error}. Nothing in it is part of the collection."
            self.candidates.append(Candidate((id or ".") + "/", place, -1, 0.0, reason=reason))
            return []
        subfolders = []
        names = set(filter(_bears_on_another, map(_NAME, entries)))
        before, inside = (f"{place}/" if place else ""), (f"{id}/" if id else "")
        for entry in entries:
            name = entry.name
            try:
                if entry.is_symlink():
                    self.links.append((before + name, child_id(id, name)))
                elif entry.is_dir(follow_symlinks=False):
                    subfolders += descend(self.root, before, name, id)
                elif name.endswith(_MOST) or name.lower().endswith(LISTED):
                    self.file(before, name, inside + printable(name), entry.stat(), names=names)
            except OSError as error:
                self.unreadable(before + name, child_id(id, name), error)
        return subfolders

    def file(self, before: str, name: str, id: str, status: os.stat_result, *, names: set[str]) -> None:
        """One file. before: its folder, with a slash; names: what of its folder bears on another file."""
        seen = self.seen[status.st_dev]
        if self.linked and status.st_ino in seen:
            return
        seen.add(status.st_ino)
        reason = reason_of(name)
        if not stat.S_ISREG(status.st_mode):
            reason = f"{_SPECIAL.get(stat.S_IFMT(status.st_mode), 'A device')}, not a file. It was not opened."
        others: tuple[str, ...] = ()
        if names:
            others = tuple(other for other in _others_of(name) if other in names)
        mark = _mark(f"{self.top}/{before}", others) if others else ""
        place = before + name
        self.candidates.append(Candidate(id, place, status.st_size, status.st_mtime, others, mark, reason))

    def follow(self, place: str, id: str) -> None:
        """What a link leads to, when it was not reached without it."""
        path = self.root / place
        try:
            status = path.stat()
        except OSError as error:
            if path.name.lower().endswith(LISTED):
                self.unreadable(place, id, error)
            return
        if status.st_ino in self.seen[status.st_dev]:
            return
        self.linked = True
        if stat.S_ISDIR(status.st_mode):
            self.below(place, id)
        elif path.name.lower().endswith(LISTED):
            before = place[: len(place) - len(path.name)]
            names = {name for name in os.listdir(path.parent) if _bears_on_another(name)}
            self.file(before, path.name, id, status, names=names)

    def unreadable(self, place: str, id: str, error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError) and (self.root / place).is_symlink()
        why = "A link to a file that is not there" if gone else f"The file cannot be read: {error.strerror or error}"
        self.candidates.append(Candidate(id, place, -1, 0.0, reason=f"{why}."))


def descend(root: Path, before: str, name: str, id: str) -> list[tuple[str, str]]:
    """(place, id) of where the files of a subfolder are to be looked for; of a hub's repository that is its snapshot,
    under the repository's name. before: the path below the root of the folder it is in, with a slash; id: of that
    folder.
    """
    if name == "huggingface" and before.endswith(".cache/"):
        return []  # the hub's notes on what it downloaded beside them
    if (hub := _HUB_REPOSITORY.fullmatch(name)) and (snapshot := _snapshot(root, before + name)):
        return [(snapshot, child_id(id, hub[1].replace("--", "/")))]
    return [(before + name, child_id(id, name))]


def _snapshot(root: Path, repository: str) -> str | None:
    """The snapshot of a hub's repository that its main branch names, else the newest; None when it has none."""
    snapshots = root / repository / "snapshots"
    try:
        commits = {path.name: path.stat().st_mtime for path in snapshots.iterdir()}
        main = root / repository / "refs" / "main"
        commit = main.read_text(encoding="ascii").strip() if main.is_file() else ""
    except (OSError, ValueError):
        return None
    if not commits:
        return None
    chosen = commit if commit in commits else max(commits, key=lambda name: commits[name])
    return f"{repository}/snapshots/{chosen}"


def _bears_on_another(name: str) -> bool:
    if name.endswith(_MOST) and "-of-" not in name:
        return False
    return may_be_beside(name) or _SHARD.fullmatch(name) is not None


def other_shards(name: str) -> list[str]:
    """What the other files of a LoRA in several are called: it changes when any of them does."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return []
    start, own, end, total = match.groups()
    return [start + part + end for i in range(1, int(total) + 1) if (part := str(i).zfill(len(own))) != own]


@lru_cache(maxsize=256)
def _others_of(name: str) -> tuple[str, ...]:
    """What files that bear on one of that name may be called, which in many folders of one LoRA each is the same."""
    return *configs_of(name), *beside(name), *other_shards(name)


def _mark(folder: str, names: tuple[str, ...]) -> str:
    """folder: with a slash."""
    marks = []
    for name in names:
        try:
            status = os.stat(folder + name)
            marks.append(f"{name} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            continue
    return hashlib.sha256("\n".join(marks).encode(errors="surrogateescape")).hexdigest()[:16]


def child_id(id: str, name: str) -> str:
    """The id of what is called `name` in the folder of that id."""
    return f"{id}/{printable(name)}" if id else printable(name)
