"""What is computed and kept: whole, once, within its limit, whoever is killed or comes at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.cli.store import Kind
from lol_core.collections.cache import cache_folder
from lol_core.collections.memory import MemorySource
from lol_core.collections.records import Records
from lol_core.collections.store import Kept, Store
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Magnitude
from lol_core.errors import ZooError
from lol_core.insight.surveys import Surveys
from lol_core.learning.config import TrainingConfig
from lol_core.learning.factors import Factors
from lol_core.learning.packed import Packing
from lol_core.learning.storage import Storage
from tests.builders import SHAPES, random_lora, write_zoo
from tests.conftest import ROOT

ARRAYS = {"a": torch.arange(250, dtype=torch.float32)}
"""1,000 bytes, and a header."""


def assert_same(a: Batch, b: Batch) -> None:
    for x, y in zip((*a.U, *a.V, a.ranks), (*b.U, *b.V, b.ranks), strict=True):
        assert torch.equal(x, y)
    assert (a.magnitudes is None) == (b.magnitudes is None)
    assert a.magnitudes is None or b.magnitudes is None or torch.equal(a.magnitudes, b.magnitudes)


@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    dora=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_factors_are_those_that_were_stacked(
    ranks: list[int], dtype: torch.dtype, dora: bool, seed: int
) -> None:
    loras = [random_lora([(name, n, m, r) for name, n, m, _ in SHAPES], seed + r) for r in ranks]
    if dora:
        loras = [
            LoRA(
                tuple(
                    replace(y, parametrisation=Magnitude(y.parametrisation, torch.rand(y.n), 0)) if y.name == "a" else y
                    for y in lora.layers
                )
            )
            for lora in loras
        ]
    spec = shared_spec(loras)
    packing, batch = Packing(spec, dtype), stack(loras, spec, dtype)
    records = packing.pack(batch)
    assert records.shape == (len(loras), packing.size)
    assert_same(packing.batch(records, range(len(loras))), batch)
    assert_same(packing.batch(records, [len(loras) - 1, 0]), batch[torch.tensor([len(loras) - 1, 0])])


def test_arrays_come_back_and_damaged_ones_are_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read(Kept.MAPS, "a map") is None
    store.write(Kept.MAPS, "a map", ARRAYS, {"title": "points"})
    arrays, words = store.read(Kept.MAPS, "a map") or ({}, {})
    assert torch.equal(arrays["a"], ARRAYS["a"]) and words == {"title": "points"}
    (item,) = store.show()
    path = store.path(item)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.read(Kept.MAPS, "a map") is None
    store.write(Kept.MAPS, "a map", ARRAYS, {})
    assert store.read(Kept.MAPS, "a map") is not None and len(store.show()) == 1
    assert sorted(p.suffix for p in tmp_path.glob("maps/*")) == [".safetensors"]


def test_a_limit_that_is_no_number_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOL_STORE_GB", "much")
    with pytest.raises(ZooError, match="LOL_STORE_GB is 'much'; expected a number of gigabytes"):
        Store(tmp_path)


def test_what_was_unused_the_longest_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=3500)
    for name in "abc":
        store.write(Kept.MAPS, name, ARRAYS, {})
    assert store.read(Kept.MAPS, "a") is not None
    store.write(Kept.MAPS, "d", ARRAYS, {})
    assert [name for name in "abcd" if store.read(Kept.MAPS, name) is not None] == ["a", "c", "d"]
    store.write(Kept.MAPS, "all", {"a": torch.zeros(5000)}, {})
    assert store.read(Kept.MAPS, "all") is None and len(store.show()) == 3, "what exceeds the limit displaces nothing"
    assert len(list(tmp_path.glob("maps/*"))) == 3


def test_records_make_room_for_themselves_and_give_way(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=2200)
    store.write(Kept.MAPS, "old", ARRAYS, {})
    records = Records.open(store, Kept.FACTORS, "k", 100, keys=["x"] * 15)
    assert records is not None
    assert records.add([f"r{i}" for i in range(15)], torch.arange(15, dtype=torch.uint8)[:, None].repeat(1, 100))
    assert store.read(Kept.MAPS, "old") is None
    places, mapped = records.places(), records.mapped()
    assert all((mapped[place] == i).all() for i, place in enumerate(places[f"r{k}"] for k in range(15)))
    others = torch.full((2, 100), 77, dtype=torch.uint8)
    assert records.add(["r3", "new"], others) and records.add(["r3", "new"], others), "as two processes would"
    places = records.places()
    assert len(places) == 16 == store.show()[0].places and (records.mapped()[places["r3"]] == 3).all()
    assert (records.mapped()[places["new"]] == 77).all()
    assert Records.open(store, Kept.FACTORS, "k", 100, keys=[f"s{i}" for i in range(23)]) is None, "more than the limit"
    assert Records.open(store, Kept.FACTORS, "k", 100, keys=[f"s{i}" for i in range(7)]) is not None
    assert records.places() == {}, "others' records give way to those that are asked for"
    assert not records.add(["r0"], torch.zeros(1, 100, dtype=torch.uint8)), "it is not there any more"


def test_any_number_of_records_comes_at_once(tmp_path: Path) -> None:
    many = [f"r{i}" for i in range(300_000)]  # more than a statement of SQLite may have values
    records = Records.open(Store(tmp_path), Kept.FACTORS, "k", 1, keys=many)
    assert records is not None
    assert records.add(many[:2], torch.zeros(2, 1, dtype=torch.uint8))
    with records.store.index() as index:
        assert records._places(index, many) == {"r0": 0, "r1": 1}


def test_a_lora_is_packed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 6)
    zoo, store = Zoo.open(tmp_path / "zoo"), Store(tmp_path / "store")
    spec = shared_spec(zoo.entries)
    first = Factors(zoo, spec, zoo.ids, store=store)
    assert store.show()[0].places == 6
    Factors(zoo, spec, zoo.ids[:3], store=store)
    assert store.show()[0].places == 6
    path = zoo.path(zoo.ids[0])
    content = path.read_bytes()
    os.utime(path, (1, 1))  # of a file whose digest is of all its bytes, the time says nothing
    second = Factors(Zoo.open(tmp_path / "zoo"), spec, zoo.ids, store=store)
    assert store.show()[0].places == 6 and path.read_bytes() == content
    assert_same(first.batch(zoo.ids), second.batch(zoo.ids))
    zoo = Zoo.open(tmp_path / "zoo")
    assert_same(first.batch(zoo.ids), stack([zoo.load(id) for id in zoo.ids], spec))
    settings = json.loads((config := path.with_name("adapter_config.json")).read_text())
    config.write_text(json.dumps(settings | {"lora_alpha": 3 * settings["lora_alpha"]}))
    scaled = Zoo.open(tmp_path / "zoo")
    third = Factors(scaled, spec, zoo.ids, store=store)
    assert store.show()[0].places == 7
    assert_same(third.batch(zoo.ids), stack([scaled.load(id) for id in zoo.ids], spec))


@pytest.mark.parametrize("storage", [Storage.BFLOAT16, Storage.FLOAT16])
def test_factors_of_16_bits_take_half_the_place_and_are_computed_with_in_32(storage: Storage, tmp_path: Path) -> None:
    source = MemorySource({f"l{i}": random_lora(seed=i) for i in range(4)})
    spec = shared_spec(source.entries)
    whole, half = Factors(source, spec, source.ids), Factors(source, spec, source.ids, dtype=storage.dtype)
    assert half.packing.size < 0.6 * whole.packing.size  # both keep the ranks as whole numbers
    rounded = stack([source.load(id) for id in source.ids], spec).map(lambda x: x.to(storage.dtype).float())
    assert_same(half.batch(source.ids), rounded)
    half.records = None
    assert_same(half.batch(source.ids), rounded)
    config = replace(TrainingConfig(storage=storage), model_config=TrainingConfig().shape)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert "storage" not in TrainingConfig().to_dict(), "a description of before says none"
    if storage is Storage.FLOAT16:
        sizes = {"small": 1.0, "large": 1e5}
        pairs = {id: LoRALayer.pair("a", torch.full((4, 2), x), torch.ones(4, 2)) for id, x in sizes.items()}
        mixed = MemorySource({id: LoRA((pair,)) for id, pair in pairs.items()})
        kept = Factors(mixed, shared_spec(mixed.entries), mixed.ids, dtype=storage.dtype)
        assert list(kept.place) == ["small"] and "a: numbers beyond 65,504" in kept.left_out["large"]


def test_a_damaged_index_or_file_is_begun_anew(tmp_path: Path) -> None:
    source = MemorySource({f"l{i}": random_lora(seed=i) for i in range(4)})
    spec, store = shared_spec(source.entries), Store(tmp_path)
    expected = Factors(source, spec, source.ids, store=store).batch(source.ids)
    path = store.path(store.show()[0])
    path.write_bytes(path.read_bytes()[:-5])
    assert_same(Factors(source, spec, source.ids, store=store).batch(source.ids), expected)
    for name in ("index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 1000)
    assert_same(Factors(source, spec, source.ids, store=store).batch(source.ids), expected)
    assert len(store.show()) == 1


PACKER = """
import os, sys, time
from pathlib import Path
from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec
from lol_core.learning import factors
folder, store, dies_after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
factors.BLOCK = 1
load, count = Zoo.load, 0
def counted(self, id):
    global count
    count += 1
    if count > dies_after:
        os.kill(os.getpid(), 9)
    return load(self, id)
Zoo.load = counted
zoo = Zoo.open(folder)
factors.Factors(zoo, shared_spec(zoo.entries), zoo.ids, store=Store(store))
print(count)
"""


def packer(folder: Path, store: Path, dies_after: int = 10**6) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PACKER, str(folder), str(store), str(dies_after)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_kill_keeps_what_was_packed_and_two_processes_pack_it_once(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 12)
    killed = packer(tmp_path / "zoo", tmp_path / "store", 5)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    store = Store(tmp_path / "store")
    assert store.show()[0].places == 5
    both = [packer(tmp_path / "zoo", tmp_path / "store") for _ in range(2)]
    read = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0] and max(read) == 7
    assert store.show()[0].places == 12
    zoo = Zoo.open(tmp_path / "zoo")
    spec = shared_spec(zoo.entries)
    factors = Factors(zoo, spec, zoo.ids, store=store)
    assert_same(factors.batch(zoo.ids), stack([zoo.load(id) for id in zoo.ids], spec))


def test_the_commands_show_and_clear(tmp_path: Path) -> None:
    assert {*Kind} - {Kind.INDEXES} == {kind.value for kind in Kept}
    write_zoo(tmp_path / "zoo", 2)
    Surveys(Zoo.open(tmp_path / "zoo")).complete()
    store = Store()
    store.write(Kept.MAPS, "a", ARRAYS, {})
    source = MemorySource({"l": random_lora()})
    Factors(source, shared_spec(source.entries), source.ids)
    stray = store.folder / "maps" / "x.1.writing"
    stray.write_bytes(b"left by a process that was killed")
    os.utime(stray, (1, 1))
    run = CliRunner().invoke
    shown = json.loads(run(app, ["store", "show", "--json"]).stdout)
    *items, index = shown["items"]
    kept = [(item["kind"], item["records"]) for item in items]
    assert kept == [("factors", 1), ("maps", None), ("surveys", 2)]
    assert shown["bytes"] == sum(item["bytes"] for item in items) and "factors" in run(app, ["store", "show"]).stdout
    assert index["kind"] == "indexes" and "zoo-" in index["file"] and index["bytes"] == shown["bytes of indexes"] > 0
    assert run(app, ["store", "clear", "--kind", "maps"]).exit_code == 0
    assert [item.kind for item in store.show()] == ["factors", "surveys"] and not stray.exists()
    assert run(app, ["store", "clear"]).exit_code == 0 and not list(store.folder.glob("*/*"))
    assert Surveys(Zoo.open(tmp_path / "zoo")).count() == 2
    assert run(app, ["store", "clear", "--kind", "indexes"]).exit_code == 0
    assert not list(cache_folder().glob("index/*")) and Surveys(Zoo.open(tmp_path / "zoo")).count() == 0
    store.folder.joinpath("index.sqlite").unlink()
    store.folder.joinpath("index.sqlite").mkdir()
    assert run(app, ["store", "show"]).exit_code == 1


def test_indexes_are_shown_and_cleared_while_another_command_ends(tmp_path: Path) -> None:
    """SQLite then takes away what it kept beside one, between the list and the look."""
    write_zoo(tmp_path / "zoo", 2)
    zoo = Zoo.open(tmp_path / "zoo")
    gone = cache_folder() / "index" / "zoo.sqlite-wal"
    gone.symlink_to(tmp_path / "gone")
    run = CliRunner().invoke
    shown = json.loads(run(app, ["store", "show", "--json"]).stdout)
    assert [item["bytes"] for item in shown["items"]] == [zoo.store().stat().st_size]
    assert run(app, ["store", "clear", "--kind", "indexes"]).exit_code == 0
    assert list(cache_folder().glob("index/*")) == [gone]
