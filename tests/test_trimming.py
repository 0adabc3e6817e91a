"""What can be had again is kept within bounds, the latest used of it, and nothing that is in use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lol_core.collections.trimming import INDEX_IDLE_S, trim

KB = 1e-6  # of a gigabyte


def put(file: Path, age: float, size: int = 1000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    os.utime(file, (time.time() - age,) * 2)
    return file


def cut(folder: Path, kilobytes: float) -> set[str]:
    """What is left."""
    trim(
        kilobytes * KB,
        repositories=folder / "hub",
        files=[folder / "members", folder / "none"],
        indexes=folder / "index",
    )
    return {file.name for file in folder.rglob("*") if file.is_file()}


def test_the_longest_unused_goes_first_also_what_is_half_downloaded(tmp_path: Path) -> None:
    put(tmp_path / "hub" / "models--a--b" / "blobs" / "1.incomplete", 30)
    put(tmp_path / "hub" / "models--a--b" / "refs" / "main", 0, 40)
    put(tmp_path / "hub" / "datasets--a--b" / "blobs" / "2", 10)
    put(tmp_path / "members" / "3", 20)
    assert cut(tmp_path, 3) == {"1.incomplete", "main", "2", "3"}
    assert cut(tmp_path, 2.5) == {"2", "3"}
    assert cut(tmp_path, 1) == {"2"}
    assert cut(tmp_path, 0) == set()


def test_an_index_that_may_be_open_stays(tmp_path: Path) -> None:
    put(tmp_path / "index" / "idle.sqlite", INDEX_IDLE_S + 60)
    put(tmp_path / "index" / "lately.sqlite", INDEX_IDLE_S - 60)
    put(tmp_path / "index" / "open.sqlite", INDEX_IDLE_S + 60)
    put(tmp_path / "index" / "open.sqlite-wal", INDEX_IDLE_S + 60)
    for name in ("idle.json", "idle.members.json", "idle.beside.parquet"):
        put(tmp_path / "index" / name, INDEX_IDLE_S + 60)
    assert cut(tmp_path, 0) == {"lately.sqlite", "open.sqlite", "open.sqlite-wal"}


def test_what_goes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = put(tmp_path / "members" / "gone", 20), put(tmp_path / "members" / "there", 10)
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([gone, there] if folder == gone.parent else []))
    gone.unlink()
    assert cut(tmp_path, 1) == {"there"}
