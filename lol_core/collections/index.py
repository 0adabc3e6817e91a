"""The index of a collection: what every file's header says, kept in SQLite in the user's cache and brought up to date
by (path, size, mtime).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from lol_core.collections.entry import Entry
from lol_core.core.header import ModuleHeader
from lol_core.errors import LoRAFormatError, ZooError
from lol_core.formats import SUFFIXES, probe

SCHEMA = 2
COLUMNS = (
    "path size mtime digest reason dialect base_model suggested_base modules ranks parameters dtypes headers alphas"
    " scales metadata extras notes".split()
)
SAMPLED_BYTES = 65_536


def cache_folder() -> Path:
    """Where indexes and trained models are kept: LOL_CACHE_DIR, or the user's cache directory."""
    return Path(os.environ.get("LOL_CACHE_DIR") or user_cache_path("lol-explorer", appauthor=False))


def candidates(folder: Path) -> Iterator[tuple[str, int, float]]:
    """(relative path, size, mtime) of the files that may be LoRAs, in order of path. A change of adapter_config.json
    counts as a change of its adapter.
    """
    for directory, subfolders, names in os.walk(folder):
        subfolders.sort()
        config_time = 0.0
        if "adapter_config.json" in names:
            try:
                config_time = (Path(directory) / "adapter_config.json").stat().st_mtime
            except OSError:
                config_time = 0.0
        for name in sorted(names):
            if name.endswith(SUFFIXES):
                path = Path(directory) / name
                try:
                    stat = path.stat()
                except OSError:
                    yield path.relative_to(folder).as_posix(), -1, 0.0
                    continue
                yield path.relative_to(folder).as_posix(), stat.st_size, max(stat.st_mtime, config_time)


def content_digest(path: Path, size: int) -> str:
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(SAMPLED_BYTES))
        if size > 2 * SAMPLED_BYTES:
            file.seek(-SAMPLED_BYTES, os.SEEK_END)
        found.update(file.read(SAMPLED_BYTES))
    return found.hexdigest()


def describe(folder: Path, path: str, size: int, mtime: float) -> Entry:
    """Probe one file. Whatever is wrong with it becomes the entry's `reason`."""
    digest = ""
    try:
        digest = content_digest(folder / path, size)
        lora = probe(folder / path)
    except LoRAFormatError as error:
        return Entry(path, size, mtime, digest, reason=str(error))
    except OSError as error:
        return Entry(path, size, mtime, digest, reason=f"The file cannot be read: {error.strerror or error}.")
    except Exception as error:  # a file this strange is the file's fault, and must not stop the collection
        return Entry(
            path, size, mtime, digest, reason=f"An unexpected {type(error).__name__} while reading the header: {error}"
        )
    return Entry.of(lora, path, size, mtime, digest)


class Index:
    """The SQLite file of one collection. Each use opens a connection of its own, so threads may share an Index."""

    def __init__(self, folder: Path, cache: Path | None = None):
        self.folder = folder.resolve()
        name = f"{self.folder.name}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]}.sqlite"
        self.path = (cache or cache_folder()) / "index" / name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ZooError(
                f"The cache folder {self.path.parent} cannot be made ({error.strerror}). Set LOL_CACHE_DIR to a folder"
                " you may write to."
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30)
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
            connection.execute("DROP TABLE IF EXISTS files")
            connection.execute(f"CREATE TABLE files ({', '.join(COLUMNS)}, PRIMARY KEY (path))")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        return connection

    def update(self, progress: Callable[[int, int], None] | None = None) -> list[Entry]:
        """Bring the index up to date and return all entries in order of path. Only new and changed files are opened.

        `progress(done, total)`. Raises ZooError when the folder is gone or the index cannot be written.
        """
        if not self.folder.is_dir():
            raise ZooError(f"{self.folder}: not a folder, or it has gone. Check the path, or plug the drive in again.")
        try:
            return self._update(progress)
        except sqlite3.DatabaseError as error:
            raise ZooError(
                f"The index {self.path} cannot be used ({error}). Free some disk space, or delete that file: it is"
                " rebuilt by itself."
            ) from error

    def _update(self, progress: Callable[[int, int], None] | None) -> list[Entry]:
        found = list(candidates(self.folder))
        connection = self._connect()
        try:
            known = {row[0]: row for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM files")}
            entries = []
            for done, (path, size, mtime) in enumerate(found, 1):
                row = known.get(path)
                if row is not None and row[1] == size and row[2] == mtime:
                    entries.append(_from_row(row))
                else:
                    entry = describe(self.folder, path, size, mtime)
                    connection.execute(
                        f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * len(COLUMNS))})", _to_row(entry)
                    )
                    entries.append(entry)
                    if done % 200 == 0:
                        connection.commit()
                if progress:
                    progress(done, len(found))
            present = {path for path, _, _ in found}
            connection.executemany(
                "DELETE FROM files WHERE path = ?", [(path,) for path in known if path not in present]
            )
            connection.commit()
            return entries
        finally:
            connection.close()


_JSON = {"ranks", "dtypes", "headers", "alphas", "scales", "metadata", "extras", "notes"}


def _to_row(entry: Entry) -> tuple[Any, ...]:
    values = vars(entry) | {"headers": [asdict(module) for module in entry.headers]}
    return tuple(json.dumps(values[name]) if name in _JSON else values[name] for name in COLUMNS)


def _from_row(row: tuple[Any, ...]) -> Entry:
    values = {name: json.loads(value) if name in _JSON else value for name, value in zip(COLUMNS, row, strict=True)}
    for name in ("ranks", "dtypes", "alphas", "scales", "extras", "notes"):
        values[name] = tuple(values[name])
    values["headers"] = tuple(map(ModuleHeader.from_dict, values["headers"]))
    return Entry(**values)
