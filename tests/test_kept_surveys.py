"""What was read of weights is kept: whole, in order, and of nothing that has changed since."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from lol_core.collections.store import Kept, Store
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.core.progress import Progress, Reporter
from lol_core.errors import ZooError
from lol_core.insight.survey import survey
from lol_core.insight.surveys import Surveys
from lol_core.learning.executor import Lost, Serial
from tests.builders import write_zoo

T = TypeVar("T")
R = TypeVar("R")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of thirteen LoRAs."""
    write_zoo(tmp_path / "zoo", 13)
    return tmp_path / "zoo"


def test_what_was_read_is_kept_and_reading_can_be_stopped(folder: Path) -> None:
    zoo = Zoo.open(folder)
    surveys, seen = Surveys(zoo), list[Progress]()
    partial = surveys.complete(Reporter(seen.append, stop=lambda: len(seen) == 3))
    assert len(partial) >= 3 and seen[-1].message.endswith("3 of 13") and len(surveys.known()) < 13
    whole = surveys.complete()
    assert set(whole) == set(zoo.ids) == set(Surveys(Zoo.open(folder)).known())
    seen.clear()
    surveys.complete(Reporter(seen.append))
    assert not seen, "nothing is read twice"


class Backwards:
    """An executor whose last item is done first."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        yield from Serial().map(function, reversed([*items]))


def test_surveys_stand_in_the_order_of_the_collection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = Zoo.open(folder)
    monkeypatch.setattr("lol_core.insight.surveys.executor", lambda workers: Backwards())
    assert list(Surveys(zoo).complete(workers=2)) == list(zoo.ids)


def test_a_file_that_was_out_of_reach_is_read_when_it_is_back(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 2)
    zoo = Zoo.open(tmp_path / "zoo")
    (tmp_path / "zoo").rename(tmp_path / "away")
    gone = Surveys(zoo).complete()
    assert all("No such file" in (survey.problem or "") for survey in gone.values())
    (tmp_path / "away").rename(tmp_path / "zoo")
    assert all(survey.problem is None for survey in Surveys(zoo).complete().values())


def test_of_a_configuration_that_changed_since_it_was_indexed_nothing_is_kept(tmp_path: Path) -> None:
    write_zoo(tmp_path, 3)
    zoo = Zoo.open(tmp_path)
    configuration = zoo.path(zoo.ids[1]).parent / "adapter_config.json"
    was = configuration.read_text()
    configuration.write_text(json.dumps(json.loads(was) | {"lora_alpha": 160}))
    found = Surveys(zoo).complete()
    assert [id for id in zoo.ids if found[id].problem] == [zoo.ids[1]]
    assert "file beside it" in str(found[zoo.ids[1]].problem)
    assert Surveys(Zoo.open(tmp_path)).complete()[zoo.ids[1]].problem is None, "opened again it is another"
    configuration.write_text(was)
    assert Surveys(Zoo.open(tmp_path)).complete()[zoo.ids[1]].norm == survey(zoo.load(zoo.ids[1])).norm


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_file_that_changed_since_it_was_indexed_nothing_is_kept(tmp_path: Path, workers: int) -> None:
    """As while a folder is copied anew: under what a file held would stand what another one says, for good."""
    write_zoo(tmp_path, 10)
    zoo = Zoo.open(tmp_path)
    cut, other = (zoo.path(id) for id in zoo.ids[:2])
    were = {path: path.read_bytes() for path in (cut, other)}
    cut.write_bytes(were[cut][:-8])
    other.write_bytes(zoo.path(zoo.ids[2]).read_bytes())
    found = Surveys(zoo).complete(workers=workers)
    assert [id for id in zoo.ids if found[id].problem] == zoo.ids[:2]
    assert all("has changed since the collection was opened" in str(found[id].problem) for id in zoo.ids[:2])
    for path, content in were.items():
        path.write_bytes(content)
    zoo = Zoo.open(tmp_path)
    surveys = Surveys(zoo).complete()
    assert all(surveys[id].problem is None and surveys[id].norm == survey(zoo.load(id)).norm for id in zoo.ids)


def test_surveys_that_cannot_be_kept_say_so(folder: Path) -> None:
    """As on a full disk, or where the file was damaged."""
    surveys = Surveys(Zoo.open(folder))
    surveys.path.write_bytes(b"no database" * 1000)
    for look in (surveys.count, surveys.known, surveys.complete):
        with pytest.raises(ZooError, match="cannot be used"):
            look()


def test_surveys_of_an_earlier_kind_leave(folder: Path) -> None:
    surveys = Surveys(Zoo.open(folder))
    surveys.complete()
    with closing(sqlite3.connect(surveys.path)) as connection:
        connection.execute("CREATE TABLE surveys_6 (digest PRIMARY KEY, norms)")
    assert surveys.count() > 0
    with closing(sqlite3.connect(surveys.path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "surveys_7" in tables and "surveys_6" not in tables


def test_others_can_write_while_weights_are_read(folder: Path) -> None:
    """As the page Map does, which may read what its sketches lack beside the job that reads all."""
    surveys, written = Surveys(Zoo.open(folder)), list[int]()

    def write(progress: Progress) -> None:
        with closing(sqlite3.connect(surveys.path, timeout=0)) as other, other:
            written.append(other.execute("DELETE FROM surveys_7 WHERE content = ''").rowcount)

    surveys.complete(Reporter(write))
    assert len(written) == 13


def test_processes_read_what_one_reads(folder: Path) -> None:
    zoo = Zoo.open(folder)
    alone = Surveys(zoo).complete()
    with sqlite3.connect(Surveys(zoo).path) as connection:
        connection.execute("DELETE FROM surveys_7")
    Store().clear()
    together = Surveys(zoo).complete(workers=2)
    assert list(together) == list(alone)
    for id, own in alone.items():
        assert np.array_equal(own.norms, together[id].norms) and np.array_equal(own.sketch, together[id].sketch)


def test_what_another_collection_read_of_the_same_files_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its LoRAs are called, and however many modules they have; what has no numbers is looked at again."""
    write_zoo(tmp_path / "few", 3, [("a", 5, 4, 2)], seed=100)
    spoilt = tmp_path / "few" / "lora001" / "adapter_model.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-4] + b"\xff" * 4)  # NaN
    first = {name: Surveys(Zoo.open(tmp_path / name)).complete() for name in ("zoo", "few")}
    assert {(item.kind, item.places) for item in Store().show()} == {(Kept.SURVEYS, 13), (Kept.SURVEYS, 2)}
    for name in first:
        shutil.copytree(tmp_path / name, tmp_path / "both" / name)
    read = list[LoRA]()
    monkeypatch.setattr("lol_core.insight.surveys.survey", read.append)
    both = Zoo.open(tmp_path / "both")
    found = Surveys(both).complete()
    assert not read and list(found) == both.ids and Surveys(both).known().keys() == found.keys()
    for id, again in found.items():
        name, _, own = id.partition("/")
        for numbers in ("norms", "effective_ranks", "sketch", "range"):
            assert np.array_equal(getattr(again, numbers), getattr(first[name][own], numbers))
        assert (again.problem is None) == (not id.startswith("few/lora001"))


def test_without_room_in_the_store_surveys_are_kept_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOL_STORE_GB", "0.0000001")
    Surveys(Zoo.open(folder)).complete()
    assert not [item for item in Store().show() if item.places] and len(Surveys(Zoo.open(folder)).known()) == 13
