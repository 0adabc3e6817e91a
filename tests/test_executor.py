"""Wide work gives the same results wherever it runs: each item once, whatever dies meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from lol_core.errors import LoLError
from lol_core.learning.executor import AHEAD, Lost, Processes, Serial, device, executor
from tests.waiting import until


def square(item: int) -> int:
    return item * item


def dies_once(folder: Path, deadly: int, item: int) -> int:
    if item == deadly and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def dies_always(deadly: int, item: int) -> int:
    if item == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def fails(item: int) -> int:
    raise LoLError(f"No {item}.")


def where(item: int) -> str:
    return device()


def threads_of_torch(item: int) -> int:
    import torch

    return torch.get_num_threads()


@pytest.mark.parametrize("runner", [Serial(), Processes(2)], ids=["serial", "processes"])
def test_every_item_comes_once_with_its_result(runner: Serial | Processes) -> None:
    assert sorted(runner.map(square, range(30))) == [(i, i * i) for i in range(30)]
    assert list(runner.map(square, [])) == []
    with pytest.raises(LoLError, match="No 3"):
        list(runner.map(fails, [3]))


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    results = Processes(2).map(partial(dies_once, tmp_path, 5), range(12))
    assert sorted(results) == [(i, i * i) for i in range(12)]
    assert (tmp_path / "died").exists()


def test_only_the_item_that_kills_is_given_up() -> None:
    results = dict(Processes(2).map(partial(dies_always, 2), range(12)))
    lost = results.pop(2)
    assert isinstance(lost, Lost) and "died" in lost.reason
    assert results == {i: i * i for i in range(12) if i != 2}


def waits(folder: Path, item: int) -> None:
    """For the signal that ends it."""
    (folder / str(os.getpid())).touch()
    signal.pause()


def test_workers_end_with_the_process_that_asked_however_it_ends(tmp_path: Path) -> None:
    ask = f"list(Processes(2).map(partial(waits, Path({str(tmp_path)!r})), range(2)))"
    with subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_executor import *; {ask}"], cwd=Path(__file__).parent.parent
    ) as asking:
        until(lambda: len(list(tmp_path.iterdir())) == 2, "two workers")
        asking.kill()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    until(lambda: not any(map(psutil.pid_exists, workers)), "the end of the workers")


def test_no_more_is_handed_out_than_keeps_the_workers_busy() -> None:
    drawn = itertools.count()
    results = Processes(1).map(square, drawn)
    for _ in range(3):
        next(results)
    results.close()
    assert next(drawn) <= 3 + AHEAD


def test_each_process_has_its_device() -> None:
    assert {place for _, place in Processes(1, ("cuda:3",)).map(where, range(3))} == {"cuda:3"}
    assert list(Serial().map(where, [0])) == [(0, "cpu")]


def test_a_process_has_the_threads_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dict(Processes(1, threads=2).map(threads_of_torch, [0])) == {0: 2}


def test_a_process_has_the_environment_of_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is forked from a server which began before."""
    for value in ("first", "second"):
        monkeypatch.setenv("LOL_CACHE_DIR", value)
        assert dict(Processes(1).map(os.getenv, ["LOL_CACHE_DIR"])) == {"LOL_CACHE_DIR": value}
    monkeypatch.delenv("LOL_CACHE_DIR")
    assert dict(Processes(1).map(os.getenv, ["LOL_CACHE_DIR"])) == {"LOL_CACHE_DIR": None}


@pytest.mark.parametrize(("workers", "kind"), [(1, Serial), ("1", Serial), ("serial", Serial), ("2", Processes)])
def test_what_stands_after_workers(workers: int | str, kind: type) -> None:
    assert isinstance(executor(workers), kind)


@pytest.mark.parametrize("words", ["many", "-2", "ray:", "http://head"])
def test_what_is_no_executor_is_refused(words: str) -> None:
    with pytest.raises(LoLError, match="ray://HOST"):
        executor(words)
