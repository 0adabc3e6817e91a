"""Wide work on a local cluster of two nodes, one of which is killed: nothing lost, nothing twice, the same digits."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Progress, Reporter
from lol_core.errors import LoLError
from lol_core.experiments.search import SMALL
from lol_core.experiments.table5 import LOSS_QUESTION
from lol_core.experiments.trials import Trials
from lol_core.finetuning.image_zoos import ImageZoo
from lol_core.finetuning.machine import Machine
from lol_core.formats import read
from lol_core.insight.surveys import Surveys
from lol_core.learning.cluster import Ray
from lol_core.learning.executor import Lost, executor
from tests.builders import write_zoo
from tests.test_experiments import SAMPLES
from tests.tiny_diffusion import RECIPE, base_folder, celeba
from tests.waiting import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not find_spec("ray"), reason="Ray, an optional extra, is not installed"),
    pytest.mark.xdist_group("cluster"),  # they share it, and Ray takes seconds to import
    pytest.mark.filterwarnings("default"),  # Ray's own warnings are not ours
]

__all__ = ["base_folder", "celeba"]  # fixtures

T = TypeVar("T")
R = TypeVar("R")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each, which do not know this program; this process belongs to the first."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patches:
        patches.delenv("PYTHONPATH", raising=False)
        for node in ({"num_cpus": 1, "include_dashboard": False}, {"num_cpus": 1}):
            until(partial(started, cluster, node), "a node starts")
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def started(cluster: Any, node: dict[str, Any]) -> bool:
    """Whether a node starts within Ray's 30 seconds, which on a busy machine it may not."""
    try:
        cluster.add_node(**node)
    except Exception as error:
        assert "timed out" in str(error), error
        return False
    return True


@dataclass
class Killed:
    """The executor of the cluster, whose second node is killed with an item in hand after the first result has come.
    Items on the first node wait until then; what is mapped afterwards runs on what is left. folder: of the marks that
    tell when; items: that came back.
    """

    cluster: Any
    folder: Path
    items: list[Any] = field(default_factory=list)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        import ray

        items = list(items)
        if self.items or not items:
            yield from executor("ray").map(function, items)
            return
        if len(self.cluster.list_all_nodes()) == 1:
            until(partial(started, self.cluster, {"num_cpus": 1}), "a node starts in place of one that was killed")
        self.folder.mkdir()
        head = ray.get_runtime_context().get_node_id()
        for item, result in executor("ray").map(partial(held, function, self.folder, head), items):
            if not self.items:
                until((self.folder / "reached").exists, "an item begins on the second node")
                self.cluster.remove_node(self.cluster.list_all_nodes()[-1], allow_graceful=False)
                (self.folder / "gone").touch()
            self.items.append(item)
            yield item, result


def held(function: Callable[[T], R], folder: Path, head: str, item: T) -> R:
    """Hangs on the second node until that node is gone, on the first until the second has begun."""
    import ray

    if ray.get_runtime_context().get_node_id() != head:
        (folder / "reached").touch()
        until((folder / "gone").exists, "the node is killed")
    until((folder / "reached").exists, "an item begins on the second node")
    return function(item)


def fails(item: int) -> int:
    raise LoLError(f"No {item}.")


def test_what_a_function_raises_on_a_node_is_raised_here(cluster: Any) -> None:
    with pytest.raises(LoLError, match="No 7"):
        list(executor("ray").map(fails, [7]))


def test_this_program_and_its_settings_are_sent_along(cluster: Any, tmp_path: Path) -> None:
    ask = """import os
from lol_core.learning.executor import executor
print(list(executor("ray").map(os.getenv, ["LOL_MODELS"])))"""
    here = {"PYTHONPATH": str(Path(__file__).parent.parent), "RAY_ADDRESS": cluster.address, "LOL_MODELS": "rows.py"}
    told = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True
    )
    assert told.stdout.strip() == "[('LOL_MODELS', 'rows.py')]", told.stderr


def test_a_machine_with_another_version_says_so(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lol_core.learning.cluster._release", lambda: "another")
    with pytest.raises(LoLError, match="Another version of this program lies in"):
        list(executor("ray").map(fails, [7]))


def test_what_no_machine_has_room_for_is_said(cluster: Any) -> None:
    with pytest.raises(LoLError, match="No machine of the cluster has 9 processors, which"):
        list(Ray(threads=9).map(fails, [7]))
    with pytest.raises(LoLError, match="has 1 processor and a GPU, which"):
        list(Ray(gpus=1).map(fails, [7]))


def test_an_index_made_on_the_cluster_is_that_made_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lol_core.collections.index.BLOCK", 3)
    write_zoo(tmp_path / "zoo", 10)
    (tmp_path / "zoo" / "lora003" / "adapter_model.safetensors").write_bytes(b"broken")
    seen: list[Progress] = []
    zoo = Zoo.open(tmp_path / "zoo", cache=tmp_path / "there", reporter=Reporter(seen.append), readers=executor("ray"))
    here = Zoo.open(tmp_path / "zoo", cache=tmp_path / "here")
    assert (list(zoo.entries), list(zoo.refused)) == (list(here.entries), list(here.refused)) and len(zoo.refused) == 1
    assert seen[-1].fraction == 1 and zoo.entries[0].headers == here.entries[0].headers


def test_a_survey_on_the_cluster_has_the_digits_of_one_here(cluster: Any, tmp_path: Path) -> None:
    write_zoo(tmp_path, 20)
    (tmp_path / "lora003" / "adapter_model.safetensors").write_bytes(b"broken")
    zoo = Zoo.open(tmp_path)
    alone = Surveys(zoo).complete()
    with sqlite3.connect(Surveys(zoo).path) as connection:
        connection.execute("DELETE FROM surveys_7")
    Store().clear()
    seen: list[Progress] = []
    together = Surveys(zoo).complete(Reporter(seen.append), workers="ray")
    assert together.keys() == alone.keys() and seen[-1].fraction == 1
    for id, own in alone.items():
        assert all(np.array_equal(getattr(own, a), getattr(together[id], a)) for a in ("norms", "sketch"))
    assert Surveys(zoo).known().keys() == alone.keys(), "a run after it has nothing to do"


def test_a_node_killed_in_the_middle_costs_an_index_and_a_survey_nothing(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ("lol_core.collections.index.BLOCK", "lol_core.insight.surveys.CHUNK"):
        monkeypatch.setattr(size, 1)
    write_zoo(tmp_path / "zoo", 12)
    here = Zoo.open(tmp_path / "zoo", cache=tmp_path / "here")
    alone = Surveys(here, tmp_path / "here").complete()
    indexing, surveying = Killed(cluster, tmp_path / "indexing"), Killed(cluster, tmp_path / "surveying")
    zoo = Zoo.open(tmp_path / "zoo", cache=tmp_path / "there", readers=indexing)
    assert sorted(candidate.id for [candidate] in indexing.items) == sorted(here.ids), "nothing lost, nothing twice"
    assert (list(zoo.entries), list(zoo.refused)) == (list(here.entries), []), "the same index"
    monkeypatch.setattr("lol_core.insight.surveys.executor", {"ray": surveying}.__getitem__)
    together = Surveys(zoo, tmp_path / "there").complete(workers="ray")
    assert sorted(id for [(id, _)] in surveying.items) == sorted(here.ids), "nothing lost, nothing twice"
    assert together.keys() == alone.keys() and Surveys(zoo, tmp_path / "there").count() == len(zoo)
    for id, own in alone.items():
        assert all(np.array_equal(getattr(own, a), getattr(together[id], a)) for a in ("norms", "sketch"))
    assert not capsys.readouterr().out, "what Ray remarks would stand within JSON"


@pytest.mark.whole_forests  # as the nodes have them
def test_a_node_killed_in_the_middle_costs_a_sweep_nothing(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, budget = Zoo.open(SAMPLES / "glosses"), replace(SMALL, loras=30, seeds=2)
    alone, together = (
        Trials(LOSS_QUESTION, zoo, budget, tmp_path / name, models=("svd", "gl_net")) for name in ("here", "there")
    )
    alone.run()
    sweeping = Killed(cluster, tmp_path / "sweeping")
    monkeypatch.setattr("lol_core.experiments.trials.executor", {"ray": sweeping}.__getitem__)
    together.run(workers="ray")
    assert sweeping.items
    here, there = (sorted(trials.kept.lines(), key=json.dumps) for trials in (alone, together))
    assert here == there, "nothing lost, nothing twice, the same digits"


def test_a_node_killed_in_the_middle_costs_a_zoo_in_the_making_nothing(
    cluster: Any, tmp_path: Path, base_folder: Path, celeba: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = (ImageZoo(tmp_path / name, RECIPE, str(base_folder)) for name in ("here", "there"))
    rows = list(alone.build(celeba, 4, Machine()))
    making = Killed(cluster, tmp_path / "making")
    monkeypatch.setattr("lol_core.finetuning.machine.executor", {"ray": making}.__getitem__)
    again = list(together.build(celeba, 4, Machine("ray")))
    assert making.items
    assert sorted(again, key=itemgetter("lora")) == sorted(rows, key=itemgetter("lora")) and len(rows) == 4
    for row in rows:
        one, other = (read(zoo.folder / row["lora"]) for zoo in (alone, together))
        for a, b in zip(one.layers, other.layers, strict=True):
            assert torch.equal(a.U, b.U) and torch.equal(a.V, b.V), "the same digits"
