"""The surveys of a collection, read once and kept beside its index, and in the store for others with these files."""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lol_core.collections.columns import content_by_id, values
from lol_core.collections.index import Database
from lol_core.collections.records import Records
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ChangedError, LoRAFormatError
from lol_core.insight.survey import SKETCH, Survey, survey
from lol_core.learning.executor import Lost, Serial, executor, map_some

CHUNK = 8
"""LoRAs that are sent to another process at a time."""
BLOCK = 1000
"""Surveys that are written at a time."""
FORMER = ("surveys_4", "surveys_5", "surveys_6")
"""Tables of earlier kinds: by the weights alone, whatever their scale; signs by other names of modules."""


class Surveys:
    """The surveys of a collection, by content, in the SQLite file of its index: what was read once is not read
    again, and what another collection has read of the same files is in the store, as long as that has the room. What
    reads or keeps them raises ZooError where the SQLite file cannot be used.
    """

    def __init__(self, zoo: Source, cache: Path | None = None):
        self.zoo = zoo
        self.path = zoo.store(cache)
        self.store = Store(cache / "store" if cache else None)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with Database(self.path).connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS surveys_7"
                " (content PRIMARY KEY, norms, effective_ranks, sketch, range, problem)"
            )
            for former in FORMER:
                connection.execute(f"DROP TABLE IF EXISTS {former}")
            yield connection

    def count(self) -> int:
        """How many surveys are kept, of present and of former files: a cheap sign of whether there are new ones."""
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM surveys_7").fetchone()[0])

    def known(self) -> dict[str, Survey]:
        """id → survey of the LoRAs read so far."""
        with self._connection() as connection:
            rows = {
                row[0]: row[1:]
                for row in connection.execute(
                    "SELECT content, norms, effective_ranks, sketch, range, problem FROM surveys_7"
                )
            }
        return {id: _from_row(rows[content]) for id, content in content_by_id(self.zoo).items() if content in rows}

    def complete(
        self,
        reporter: Reporter = SILENT,
        *,
        workers: int | str = 1,
    ) -> dict[str, Survey]:
        """Read what has not been read; `workers` as `executor` takes them. When the reporter says to stop it ends with
        what it has, which is kept.
        """
        surveys = self.known()
        runner, keys = executor(workers), content_by_id(self.zoo)
        missing = [id for id in keys if id not in surveys]
        rows: list[tuple[Any, ...]] = []
        done, saved, read = 0, time.monotonic(), dict[str, Survey]()
        with self._connection() as connection:
            for id, known in self._of_others(missing, keys):
                surveys[id] = known
                rows.append((keys[id], *_to_row(known)))
                if len(rows) == BLOCK:
                    _keep(connection, rows)
            missing = [id for id in missing if id not in surveys]
            if len(missing) <= CHUNK:
                runner = Serial()
            readers = [(id, self.zoo.reader(id)) for id in missing]
            for chunk in map_some(runner, _survey_all, readers, 1 if isinstance(runner, Serial) else CHUNK):
                for id, result in chunk.items():
                    if isinstance(result, Lost):  # not kept: a larger machine may read it, or the file be back
                        surveys[id] = _unread(result.reason)
                        continue
                    surveys[id] = read[id] = result
                    rows.append((keys[id], *_to_row(result)))
                done += len(chunk)
                if time.monotonic() - saved > 1:  # not after each, which is slow
                    _keep(connection, rows)
                    saved = time.monotonic()
                reporter.count("Reading weights: LoRA", done, len(missing))
                if reporter.stopping:
                    break
            _keep(connection, rows)
        self._for_others(read, keys)
        return {id: surveys[id] for id in keys if id in surveys}  # in their order, whichever came first

    def _of_others(self, ids: Sequence[str], keys: Mapping[str, str]) -> Iterator[tuple[str, Survey]]:
        """What the store knows of these LoRAs; keys: id → content."""
        modules = values(self.zoo, "modules").loc[list(ids)]
        for count, some in modules.groupby(modules).groups.items():
            try:
                if (kept := Records.find(self.store, Kept.SURVEYS, _key(count))) is None:
                    continue
                places, numbers = kept.places(), kept.mapped().view(torch.float32).numpy()
            except (OSError, sqlite3.Error):  # read anew
                continue
            yield from ((id, _of_numbers(np.array(numbers[places[keys[id]]]))) for id in some if keys[id] in places)

    def _for_others(self, surveys: Mapping[str, Survey], keys: Mapping[str, str]) -> None:
        """Keep in the store what was read, as far as it has the room."""
        by_count: dict[int, list[str]] = defaultdict(list)
        for id, each in surveys.items():
            if each.problem is None:
                by_count[len(each.norms)].append(id)
        for count, ids in by_count.items():
            size = 4 * len(_numbers(surveys[ids[0]]))
            kept = Records.open(self.store, Kept.SURVEYS, _key(count), size, keys=[keys[id] for id in ids])
            for start in range(0, len(ids), BLOCK):
                some = ids[start : start + BLOCK]
                records = torch.from_numpy(np.stack([_numbers(surveys[id]) for id in some])).view(torch.uint8)
                if kept is None or not kept.add([keys[id] for id in some], records):
                    break


def _keep(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """Write rows and forget them. The file is locked only meanwhile: a page may read the same weights for its map."""
    with connection:
        connection.executemany("INSERT OR REPLACE INTO surveys_7 VALUES (?, ?, ?, ?, ?, ?)", rows)
    rows.clear()


def _survey_all(readers: Sequence[tuple[str, Callable[[], LoRA]]]) -> dict[str, Survey | Lost]:
    """id → survey; what cannot be read gets its reason in place of numbers, as lost where that says nothing of the
    file's content.
    """
    surveys: dict[str, Survey | Lost] = {}
    for id, reader in readers:
        try:
            surveys[id] = survey(reader())
        except LoRAFormatError as error:
            surveys[id] = Lost(str(error)) if _out_of_reach(error) else _unread(str(error))
    return surveys


def _out_of_reach(error: BaseException | None) -> bool:
    """Whether the file system refused, not the file: it is gone, or on a drive or machine that is not there, or is
    another one by now.
    """
    return error is not None and (isinstance(error, OSError | ChangedError) or _out_of_reach(error.__cause__))


def _unread(reason: str) -> Survey:
    nothing = np.zeros(0, np.float32)
    return Survey(nothing, nothing, nothing, nothing, reason)


def _key(modules: object) -> str:
    """Of the store's records of LoRAs of so many modules; its first number is that of the table."""
    return f"7, {modules} modules"


def _numbers(survey: Survey) -> np.ndarray:
    """A survey without a problem as one row of numbers."""
    return np.concatenate([survey.norms, survey.effective_ranks, survey.sketch, survey.range], dtype=np.float32)


def _of_numbers(row: np.ndarray) -> Survey:
    norms, effective_ranks = row[: -SKETCH - 2].reshape(2, -1)
    return Survey(norms, effective_ranks, row[-SKETCH - 2 : -2], row[-2:])


def _to_row(survey: Survey) -> tuple[bytes | str | None, ...]:
    arrays = (survey.norms, survey.effective_ranks, survey.sketch, survey.range)
    return *(array.astype(np.float32).tobytes() for array in arrays), survey.problem


def _from_row(row: tuple[Any, ...]) -> Survey:
    *arrays, problem = row
    norms, effective_ranks, drawn, bounds = (np.frombuffer(blob, np.float32) for blob in arrays)
    return Survey(norms, effective_ranks, drawn, bounds, problem)
