"""Every command for many files on every kind of place: a folder, an archive, a pattern, the hub."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.cli.console import INTERRUPTED
from lol_core.collections.store import Store
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec
from lol_core.core.progress import Reporter
from lol_core.learning import answers, stream
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.executor import Lost
from lol_core.learning.models import make_model
from lol_core.learning.tasks import Regression
from tests.builders import write_zoo
from tests.hub import Hub, hub

__all__ = ["hub"]
COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "zoo"
    write_zoo(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """A model with the weights it begins with."""
    zoo, config = Zoo.open(folder), TrainingConfig("svd")
    model = make_model("svd", shared_spec(zoo.entries), 1, config.shape)
    Checkpoint(model, Regression(("size",), (0.0,), (1.0,)), config, {}).save(folder.parent / "model")
    return folder.parent / "model"


def output(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, f"{arguments}: {result.output}"
    return json.loads(result.stdout)


def place_of(kind: str, folder: Path, hub: Hub, tmp_path: Path) -> str:
    """The folder's LoRAs as a place of some kind."""
    if kind == "hub":
        hub.add("models/someone/zoo", folder)
    if kind == "archive":
        with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as archive:
            for path in sorted(folder.rglob("*.*")):
                archive.write(path, path.relative_to(folder).as_posix())
    return {
        "folder": str(folder),
        "archive": str(tmp_path / "zoo.zip"),
        "pattern": str(folder / "lora00[0-3]"),
        "hub": "hf://someone/zoo",
        "url": folder.as_uri(),
    }[kind]


@pytest.mark.parametrize("kind", ["folder", "archive", "pattern", "hub", "url"])
def test_every_command_takes_every_place(kind: str, folder: Path, checkpoint: Path, hub: Hub, tmp_path: Path) -> None:
    place = place_of(kind, folder, hub, tmp_path)
    counted: dict[str, Callable[[], int]] = {
        "scan": lambda: len(output("scan", place)["loaded"]),
        "survey": lambda: len(output("survey", place)["loras"]),
        "health": lambda: output("health", place)["loras"],
        "audit": lambda: output("audit", place, "--checkpoint", checkpoint)["loras"],
        "duplicates": lambda: COUNT if not output("duplicates", place)["groups"] else 0,
        "nearest": lambda: len(output("nearest", place, "lora001")["nearest"]) + 1,
        "convert": lambda: len(output("convert", place, "--to", "PEFT", "--out", tmp_path / "converted")["written"]),
        "resize": lambda: len(output("resize", place, "--rank", 1, "--out", tmp_path / "resized")["written"]),
        "merge": lambda: len(output("merge", place, "--out", tmp_path / "merged")["merged"]),
        "predict": lambda: len(output("predict", "--checkpoint", checkpoint, place)["predictions"]),
        "compare": lambda: COUNT * output("compare", "lora001", "lora001", "--of", place)["same function"],
    }
    assert {command: count() for command, count in counted.items()} == dict.fromkeys(counted, COUNT)


@pytest.mark.parametrize("kind", ["folder", "archive", "pattern", "hub", "url"])
def test_so_many_files_are_read_at_a_time(
    kind: str, folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(kind, folder, hub, tmp_path)
    threads: list[int] = []

    def pool(count: int, **options: Any) -> ThreadPoolExecutor:
        threads.append(count)
        return ThreadPoolExecutor(count, **options)

    monkeypatch.setattr("lol_core.collections.index.ThreadPoolExecutor", pool)
    monkeypatch.setattr("lol_core.cli.inputs.ThreadPoolExecutor", pool)
    assert len(output("scan", place, "--workers", 3)["loaded"]) == len(output("scan", place)["loaded"]) == COUNT
    assert threads == [3, 16 if kind in ("hub", "url") else 4]
    assert CliRunner().invoke(app, ["scan", place, "--workers", "0"]).exit_code == 2
    threads.clear()
    assert output("compare", "lora001", "lora001", "--of", place, "--workers", 2)["same function"]
    output("merge", place, "--out", tmp_path / "merged", "--workers", 2)
    headers = 0 if kind == "pattern" else 1  # merge takes what a pattern names as files of their own
    assert threads == [2, 2] + [2] * headers + [2]  # headers, then weights, of each


def test_two_are_compared_wherever_each_is(folder: Path, hub: Hub) -> None:
    hub.add("models/someone/zoo", folder)
    found = output("compare", folder / "lora00[1]", "hf://someone/zoo/lora001")
    assert found["same function"] and not output("compare", folder / "lora001", folder / "lora002")["same function"]
    for words, reason in (
        ([folder, folder / "lora001"], "holds 4 LoRAs"),
        (["a", "b", "--of", folder], "no such LoRA"),
    ):
        refused = CliRunner().invoke(app, ["compare", *map(str, words)])
        assert refused.exit_code == 1 and reason in " ".join(refused.output.split())


class Elsewhere:
    """As other processes would: what is sent can be pickled, the last comes first, and one LoRA kills its worker."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        for item in reversed([*items]):
            killed = any("lora000" in id for id, _ in item)
            answer = Lost("It killed the worker.") if killed else function(item)
            pickle.dumps((function, item, answer))
            yield item, answer


def test_models_are_asked_by_workers_as_they_are_here(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = Zoo.open(folder).entries
    killing = entries[0].path
    alone = output("predict", "--checkpoint", checkpoint, folder)["predictions"]
    named: list[str] = []

    def elsewhere(workers: str) -> Elsewhere:
        named.append(workers)
        return Elsewhere()

    monkeypatch.setattr(stream, "AT_ONCE_BYTES", 2 * entries[0].size)
    monkeypatch.setattr(answers, "executor", elsewhere)
    Store().clear()
    together = output("predict", "--checkpoint", checkpoint, folder, "--workers", 3)
    assert together["finished"] and together["refused"] == {killing: "It killed the worker."}
    assert [*together["predictions"]] == [entry.path for entry in entries if entry.path != killing]
    for id, row in together["predictions"].items():
        assert row["size"] == pytest.approx(alone[id]["size"], rel=1e-4, abs=1e-6)
    options = ["--checkpoint", checkpoint, "--workers", 3, "--fail-on", "never"]
    remarks = output("audit", folder, *options)["remarks"]
    assert [row["lora"] for row in remarks if row["about"] == "predicted"] == [*together["predictions"]]
    assert [(row["lora"], row["message"]) for row in remarks if row["about"] == "not read"] == [
        (killing, "It killed the worker.")
    ]
    assert named == ["3", "3"]


def test_a_prediction_that_is_stopped_keeps_what_it_has(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = Zoo.open(folder).entries
    answers = Answers.of
    monkeypatch.setattr(stream, "AT_ONCE_BYTES", 1)
    monkeypatch.setattr(
        Answers,
        "of",
        lambda model, zoo, store=None, **_: answers(model, zoo, reporter=Reporter(stop=lambda: True), store=store),
    )
    result = CliRunner().invoke(app, ["predict", "--checkpoint", str(checkpoint), str(folder), "--json"])
    stopped = json.loads(result.stdout)
    assert (
        result.exit_code == INTERRUPTED
        and "the same command goes on" in result.stderr
        and not stopped["finished"]
        and [*stopped["predictions"]] == [entries[0].path]
    )
    assert [(item.kind, item.places) for item in Store().show()] == [("answers", 1)]
