"""The index of a folder: what it keeps, what it survives, and which files it sees. All LoRAs here are synthetic."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file

from lol_core.collections import describe as describe_module
from lol_core.collections import index as index_module
from lol_core.collections.describe import describe
from lol_core.collections.entries import Decoder, Entries
from lol_core.collections.entry import Entry
from lol_core.collections.index import Index
from lol_core.collections.names import short_name
from lol_core.collections.page import Filters, Order
from lol_core.collections.schema import Row
from lol_core.collections.served import Roots
from lol_core.collections.walk import Candidate, candidates
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.learning.executor import Lost
from tests.builders import MODULES, SHAPES, random_lora, write_peft, write_zoo


def adapter(path: Path, seed: int = 0) -> Path:
    """A LoRA as one file of that name."""
    folder = path.parent / f"made for {seed}"
    write_peft(folder, random_lora(MODULES, seed))
    shutil.move(folder / "adapter_model.safetensors", path)
    shutil.rmtree(folder)
    return path


def test_what_files_share_is_kept_once(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 5)
    write_peft(tmp_path / "zoo" / "other", random_lora(SHAPES))
    (tmp_path / "zoo" / "broken.safetensors").write_bytes(b"no header")
    first, again = (Zoo.open(tmp_path / "zoo") for _ in range(2))
    for zoo in (first, again):
        assert len({id(entry.headers) for entry in zoo.entries}) == 2
        assert len({id(entry.scales) for entry in zoo.entries}) == 1
    assert first.entries == again.entries
    with closing(sqlite3.connect(Index(tmp_path / "zoo").path)) as database:
        assert database.execute("SELECT COUNT(*) FROM structure").fetchone() == (2,)
        assert database.execute("SELECT COUNT(*) FROM form").fetchone() == (3,)
    shutil.rmtree(tmp_path / "zoo" / "other")
    Zoo.open(tmp_path / "zoo")
    with closing(sqlite3.connect(Index(tmp_path / "zoo").path)) as database:
        assert database.execute("SELECT COUNT(*) FROM structure").fetchone() == (1,)
        assert database.execute("SELECT COUNT(*) FROM form").fetchone() == (2,)


def test_opening_a_known_folder_makes_no_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path, 5)
    Zoo.open(tmp_path)
    made: list[Row] = []
    entry = Decoder.entry

    def counting(decoder: Decoder, row: Row) -> Entry:
        made.append(row)
        return entry(decoder, row)

    monkeypatch.setattr(Decoder, "entry", counting)
    zoo = Zoo.open(tmp_path)
    assert len(zoo.ids) == len(zoo) == len(zoo.by_id) == len(zoo.names) == 5 and zoo.fingerprint and not made
    assert zoo.by_id[zoo.ids[2]].path == zoo.ids[2] and len(made) == 1


def test_alphas_that_differ_come_back_each(tmp_path: Path) -> None:
    write_peft(tmp_path / "zoo" / "a", random_lora(MODULES), alpha=2, alpha_pattern={"layer.1.attention.self.key": 6})
    fresh, kept = (Zoo.open(tmp_path / "zoo").entries[0] for _ in range(2))
    assert fresh.scales == kept.scales == (1.0, 1.0, 3.0) and fresh.alphas == kept.alphas == (2.0, 2.0, 6.0)


def test_metadata_come_from_the_index_when_they_are_wanted(tmp_path: Path) -> None:
    write_peft(tmp_path / "zoo" / "a", random_lora(MODULES), note="über")
    fresh, kept = (Zoo.open(tmp_path / "zoo").entries[0] for _ in range(2))
    assert dict(kept.metadata) == dict(fresh.metadata) and kept.metadata["note"] == "über"
    lost = Zoo.open(tmp_path / "zoo").entries[0]
    Index(tmp_path / "zoo").path.unlink()
    assert lost.metadata == {}


INDEXED_BY_ANOTHER = """
import os, signal, sys
from pathlib import Path
from lol_core.collections import index
index.BLOCK = 4
from lol_core.core.progress import Reporter
def kill(progress):
    if progress.fraction >= 8 / 20:
        os.kill(os.getpid(), signal.SIGKILL)
index.Index(Path(sys.argv[1])).update(Reporter(kill))
"""


class Deadly:
    """A cluster whose workers die over one file."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        for block in reversed(list(items)):  # in any order
            dies = any("lora004" in candidate.id for candidate in block)
            yield block, Lost("It ate the memory.") if dies else function(block)


def test_what_kills_every_worker_is_refused_alone_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BLOCK", 3)
    write_zoo(tmp_path / "zoo", 8)
    zoo = Zoo.open(tmp_path / "zoo", cache=tmp_path / "cache", readers=Deadly())
    here = Zoo.open(tmp_path / "zoo", cache=tmp_path / "here")
    assert list(zoo.entries) == [entry for entry in here.entries if "lora004" not in entry.path]
    assert [entry.reason for entry in zoo.refused] == ["It ate the memory."]
    again = Zoo.open(tmp_path / "zoo", cache=tmp_path / "cache")
    assert list(again.entries) == list(here.entries) and not again.refused


def test_a_killed_index_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "zoo", 20)
    killed = subprocess.run([sys.executable, "-c", INDEXED_BY_ANOTHER, str(tmp_path / "zoo")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Index(tmp_path / "zoo").page().total == 8
    opened = counted(monkeypatch)
    assert len(Zoo.open(tmp_path / "zoo")) == 20 and len(opened) == 12


def test_an_update_that_is_stopped_keeps_what_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "zoo", 20)
    monkeypatch.setattr("lol_core.collections.index.BLOCK", 4)
    seen: list[Progress] = []
    with pytest.raises(Stopped, match="kept"):
        Zoo.open(tmp_path / "zoo", reporter=Reporter(seen.append, stop=lambda: len(seen) == 4))
    assert seen[-1].message == "Reading headers: file 12 of 20"
    opened = counted(monkeypatch)
    assert len(Zoo.open(tmp_path / "zoo")) == 20 and len(opened) == 8


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of files that are opened from now on."""
    opened: list[str] = []

    def counting(folder: Path, candidate: Candidate) -> Entry:
        opened.append(candidate.id)
        return describe(folder, candidate)

    monkeypatch.setattr("lol_core.collections.index.describe", counting)
    return opened


@pytest.mark.parametrize(("seconds", "one_by_one"), [((2, 1, 1, 1, 1), 4), ((1, 2, 1, 1, 1), 1), ((2, 1, 3, 1, 1), 2)])
def test_headers_are_read_in_the_way_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[int, ...], one_by_one: int
) -> None:
    write_zoo(tmp_path / "zoo", 10)
    monkeypatch.setattr(index_module, "BLOCK", 2)
    clock = iter([0, *accumulate(second for block in seconds for second in (block, 0))])
    monkeypatch.setattr(index_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    counted = Mock(wraps=index_module._each)
    monkeypatch.setattr(index_module, "_each", counted)
    assert len(Index(tmp_path / "zoo").update()) == 10
    assert counted.call_count == one_by_one


def test_two_indexes_of_one_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zoo(tmp_path / "zoo", 30)
    monkeypatch.setattr("lol_core.collections.index.BLOCK", 2)
    found: list[Entries] = []
    threads = [threading.Thread(target=lambda: found.append(Index(tmp_path / "zoo").update())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(entries == found[0] for entries in found) and len(found[0]) == 30
    assert Zoo.open(tmp_path / "zoo").entries == found[0]


def test_the_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 3)
    index = Index(tmp_path / "zoo")
    with closing(sqlite3.connect(index.path)) as old:
        old.execute("CREATE TABLE files (path, size)")
        old.execute("CREATE TABLE file (path)")
        old.execute("PRAGMA user_version = 2")
    assert len(index.update()) == 3


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.safetensors")
    try:
        adapter(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    for zoo in (Zoo.open(tmp_path), Zoo.open(tmp_path)):
        assert zoo.ids == ["caf\\xe9.safetensors"] and zoo.path(zoo.ids[0]) == tmp_path / name
        assert len(zoo.load(zoo.ids[0]).layers) == 3
    json.dumps(zoo.ids).encode()


def test_pipes_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.pt")
        zoo = Zoo.open(tmp_path)
    assert zoo.ids == ["a.safetensors"]
    reasons = {entry.path: entry.reason or "" for entry in zoo.refused}
    assert "named pipe" in reasons["pipe.safetensors"] and "socket" in reasons["socket.pt"]


def test_a_folder_as_deep_as_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1050):  # deeper than Python's stack
        os.mkdir("d")
        os.chdir("d")
    adapter(Path("a.safetensors"))
    (found,) = candidates(tmp_path)
    assert found.id == "d/" * 1050 + "a.safetensors"
    os.chdir(tmp_path)
    subprocess.run(["rm", "-r", "d"], check=True)


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    adapter(tmp_path / "LOUD.SAFETENSORS")
    assert [candidate.id for candidate in candidates(tmp_path)] == ["LOUD.SAFETENSORS"]


def test_a_lora_in_shards_is_one_and_changes_with_any_of_them(tmp_path: Path) -> None:
    whole = load_file(adapter(tmp_path / "whole.safetensors"))
    keys = sorted(whole)
    names = [f"zoo/a-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (tmp_path / "zoo").mkdir()
    for part, name in enumerate(names):
        save_file({key: whole[key] for key in keys[3 * part : 3 * part + 3]}, tmp_path / name)
    zoo = Zoo.open(tmp_path / "zoo")
    assert len(zoo) == 1 and len(zoo.entries[0].headers) == 3 and len(zoo.refused) == 1
    for source in (zoo, Roots.named([str(tmp_path / "zoo")]).open("zoo://zoo")):
        assert list(source.names.values()) == ["a"] and len(source.load(source.ids[0]).layers) == 3
    assert short_name("style/adapter_model-00001-of-00002.safetensors") == "style"
    save_file({key: whole[key] * 2 for key in keys[3:]}, tmp_path / names[1])
    changed = Zoo.open(tmp_path / "zoo")
    assert changed.ids == zoo.ids and changed.fingerprint != zoo.fingerprint


def test_links_are_followed_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    zoo, elsewhere = tmp_path / "zoo", tmp_path / "elsewhere"
    for folder in (zoo / "real", elsewhere):
        folder.mkdir(parents=True)
    adapter(zoo / "real" / "b.safetensors", 1)
    adapter(elsewhere / "c.safetensors", 2)
    (zoo / "a-link.safetensors").symlink_to(zoo / "real" / "b.safetensors")
    (zoo / "a-folder").symlink_to(zoo / "real")
    (zoo / "real" / "loop").symlink_to(zoo)
    (zoo / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(zoo)
    (zoo / "alone.safetensors").symlink_to(elsewhere / "c.safetensors")
    (zoo / "broken.safetensors").symlink_to(tmp_path / "nowhere")
    ids = [candidate.id for candidate in candidates(zoo)]
    assert ids == ["alone.safetensors", "broken.safetensors", "real/b.safetensors"]
    opened = Zoo.open(zoo)
    assert opened.ids == ["alone.safetensors", "real/b.safetensors"]
    assert opened.refused[0].reason == "A link to a file that is not there."
    (zoo / "alone.safetensors").unlink()
    assert Zoo.open(zoo).ids == ["linked/c.safetensors", "real/b.safetensors"]


def test_a_folder_that_may_not_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    adapter(tmp_path / "secret" / "a.safetensors")
    adapter(tmp_path / "b.safetensors", 1)
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    zoo = Zoo.open(tmp_path)
    assert zoo.ids == ["b.safetensors"] and [entry.path for entry in zoo.refused] == ["secret/"]
    assert "cannot be read: Permission denied" in (zoo.refused[0].reason or "")
    monkeypatch.setattr(os, "scandir", scandir)
    assert Zoo.open(tmp_path).ids == ["b.safetensors", "secret/a.safetensors"]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, probe = adapter(tmp_path / "a.safetensors"), describe_module.probe_file
    asked: list[Path] = []

    def changing(file: Path) -> object:
        asked.append(file)
        if len(asked) == 1:
            shutil.copy(adapter(tmp_path / "other.pt", 5), path)
            os.utime(path, (1e9, 1e9))
        return probe(file)

    (candidate,) = candidates(tmp_path)
    monkeypatch.setattr(describe_module, "probe_file", changing)
    entry = describe(tmp_path, candidate)
    assert len(asked) == 2 and entry.reason is None and entry.mtime == 1e9

    def restless(file: Path) -> object:
        asked.append(file)
        os.utime(path, (len(asked), len(asked)))
        return probe(file)

    (tmp_path / "other.pt").unlink()
    monkeypatch.setattr(describe_module, "probe_file", restless)
    assert "changes while it is read" in (Zoo.open(tmp_path).refused[0].reason or "")
    monkeypatch.setattr(describe_module, "probe_file", probe)
    assert Zoo.open(tmp_path).ids == ["a.safetensors"]


def test_a_hubs_cache_has_each_lora_once_under_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--some--style-lora"
    for folder in ("blobs", "refs", "snapshots/old", "snapshots/new", ".no_exist/new"):
        (repository / folder).mkdir(parents=True)
    for seed, commit in enumerate(("old", "new")):
        blob = adapter(repository / "blobs" / f"blob{seed}", seed)
        (repository / "snapshots" / commit / "adapter_model.safetensors").symlink_to(
            os.path.relpath(blob, repository / "snapshots" / commit)
        )
    (repository / ".no_exist" / "new" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (repository / "refs" / "main").write_text("new")
    download = tmp_path / "plain" / ".cache" / "huggingface" / "download"
    download.mkdir(parents=True)
    (download / "adapter_model.safetensors").write_bytes(b"not one")
    zoo = Zoo.open(tmp_path)
    assert zoo.ids == ["some/style-lora/adapter_model.safetensors"] and not zoo.refused
    assert list(zoo.names.values()) == ["some/style-lora"]
    assert zoo.path(zoo.ids[0]).resolve() == repository / "blobs" / "blob1"
    assert len(zoo.load(zoo.ids[0]).layers) == 3
    (repository / "snapshots" / "new" / "labels.csv").write_text("lora,score\nadapter_model.safetensors,1\n")
    for place in (repository, repository / "snapshots" / "new"):
        alone = Zoo.open(place)
        assert alone.ids == ["adapter_model.safetensors"] and [*alone.labels["score"]] == [1]
        assert alone.name == "style-lora" and len(alone.load(alone.ids[0]).layers) == 3
    others = Roots.named([f"hub={tmp_path}"]).open("zoo://hub")
    assert others.ids == zoo.ids and not others.refused and len(others.load(zoo.ids[0]).layers) == 3
    (repository / "refs" / "main").write_text("gone")
    os.utime(repository / "snapshots" / "old", (3e9, 3e9))
    assert Zoo.open(tmp_path).path(zoo.ids[0]).resolve() == repository / "blobs" / "blob0"


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ("optimizer.pt", "An optimizer's state"),
        ("rng_state.pth", "The random numbers' state"),
        ("rng_state_3.pth", "The random numbers' state"),
    ],
)
def test_what_training_leaves_beside_loras_is_not_opened(
    left: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zoo(tmp_path, 1)
    (tmp_path / "lora000" / left).write_bytes(b"never looked into")
    monkeypatch.setattr(describe_module, "content_digest", lambda path, size: "x" if path.name != left else 1 / 0)
    (refused,) = Zoo.open(tmp_path).refused
    assert refused.path == f"lora000/{left}" and reason in (refused.reason or "")


def test_pages_are_searched_filtered_and_sorted(tmp_path: Path) -> None:
    for i in range(12):
        write_peft(tmp_path / "zoo" / f"lora{i:02d}", random_lora(MODULES if i < 9 else SHAPES, i), note=f"Owl {i}")
    (tmp_path / "zoo" / "bad.safetensors").write_bytes(b"no")
    index = Index(tmp_path / "zoo")
    assert index.page().total == 0
    entries = [entry for entry in index.update() if entry.reason is None]
    assert [e.path for e in index.page(limit=3, offset=4).entries] == [e.path for e in entries[4:7]]
    assert index.page(limit=3).total == 12
    assert [e.path for e in index.page("owl 11").entries] == ["lora11/adapter_model.safetensors"]
    assert index.page("100%").total == index.page("owl bat").total == 0
    assert index.page(filters=Filters(ranks=(3,))).total == 3 and index.counts("rank") == {2: 9, 3: 3}
    assert index.page("lora", Filters(ranks=(2, 3), dialects=(entries[0].dialect or "",))).total == 12
    largest = index.page(order=Order.SIZE, descending=True).entries
    assert [e.size for e in largest] == sorted((e.size for e in entries), reverse=True)
    (refused,) = index.page(filters=Filters(refused=True)).entries
    assert refused.path == "bad.safetensors" and sum(index.counts("base").values()) == 12
    for order in Order:
        assert index.page(order=order).total == 12


def test_everything_published_or_reported_is_read_or_explained(tmp_path: Path, real_loras: Path) -> None:
    cases = real_loras.parent / "field" / "cases"
    if not cases.is_dir():
        pytest.skip("the cases from the field are not here")
    for folder in (cases, real_loras):
        (tmp_path / folder.name).symlink_to(folder)
    zoo = Zoo.open(tmp_path)
    assert all(entry.reason and "unexpected" not in entry.reason for entry in zoo.refused)
    for id in zoo.ids:
        zoo.load(id)


def test_looking_for_files_says_how_far_it_is_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.collections.walk.BETWEEN", 10)
    for i in range(25):
        (tmp_path / f"{i:02d}").mkdir()
    seen = list[str]()
    reporter = Reporter(lambda progress: seen.append(progress.message), lambda: len(seen) == 2)
    with pytest.raises(Stopped):
        candidates(tmp_path, reporter)
    assert seen == ["Looking for files: 10 folders", "Looking for files: 20 folders"]
