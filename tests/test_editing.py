"""Edits are of the update and not of its factors, go uphill, move as far as they say, and stay what their file was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lol_core.cli.commands import app
from lol_core.cli.editing import EPOCHS, Direction
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import shared_spec, stack
from lol_core.core.fixed_rank import FixedRank, Tangent
from lol_core.core.geometry import distance, norm
from lol_core.core.lora import LoRA
from lol_core.errors import CheckpointError, ModelError, TaskError
from lol_core.formats import read
from lol_core.formats.writing import write
from lol_core.insight.editing import Method, edit
from lol_core.insight.plots import edit_path
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.editor import Editor, EditorConfig, train_editor
from lol_core.learning.goal import Goal, unmet
from lol_core.learning.members import Members
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_equivariant import GLEquivariantConfig, GLEquivariantNet
from lol_core.learning.tasks import Binary, Multiclass, Regression
from lol_core.learning.training import plan, train
from tests.builders import random_batch, random_lora, turned, write_zoo
from tests.conftest import ROOT

SAMPLES = ROOT / "sample_loras"
MIXED = (("a", 7, 5, 3), ("b", 6, 9, 2), ("c", 7, 5, 1))
BINARY = Binary(("hat", "beard"))


def untrained(model: str = "gl_net") -> Checkpoint:
    loras = [random_lora(seed=i) for i in range(8)]
    torch.manual_seed(0)
    made = make_model(model, shared_spec(loras), BINARY.outputs)
    return Checkpoint(made, BINARY, TrainingConfig(model=model), {"train": []})


def some_members(checkpoint: Checkpoint) -> Members:
    labels = pd.DataFrame({"hat": [0, 1, 1, 0, 1, 0, 1, 1], "beard": [1, 0] * 4})
    return Members(stack([random_lora(seed=10 + i) for i in range(8)], checkpoint.spec), labels)


def some_editor(checkpoint: Checkpoint) -> Editor:
    """Random in every weight: what it promises it promises whatever it learnt."""
    torch.manual_seed(1)
    net = GLEquivariantNet(checkpoint.spec, GLEquivariantConfig(width=8, wishes=checkpoint.task.outputs, atoms=4))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Editor(net.requires_grad_(False), checkpoint.created)


def whole(lora: LoRA) -> torch.Tensor:
    return torch.cat([layer.delta(torch.float64).flatten() for layer in lora.layers])


@settings(max_examples=6)
@given(seed=st.integers(0, 50), size=st.floats(0.01, 2.0))
def test_a_step_is_the_nearest_update_of_the_same_rank(seed: int, size: float) -> None:
    """Against dense singular values; modules of lower rank keep theirs."""
    point = FixedRank.of(random_batch(MIXED, count=2, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    sides = [[torch.randn(f.shape, generator=generator, dtype=f.dtype) for f in of] for of in (point.P, point.Q)]
    change = point.project(list(zip(*sides, strict=True))).times(torch.full((2,), size).double())
    after = point.step(change)
    gaps = after.distances(point)
    for g, (_, indices) in enumerate(point.like.spec.groups):
        for j, i in enumerate(indices):
            rank = point.like.spec.modules[i].rank
            for b in range(2):
                P, sigma, Q, A, B = (part[g][b, j] for part in (point.P, point.sigma, point.Q, change.A, change.B))
                before = (P * sigma) @ Q.T
                X, s, Y = torch.linalg.svd(before + A @ Q.T + P @ B.T)
                nearest = (X[:, :rank] * s[:rank]) @ Y[:rank]
                new = (after.P[g][b, j] * after.sigma[g][b, j]) @ after.Q[g][b, j].T
                torch.testing.assert_close(new, nearest, rtol=1e-8, atol=1e-8)
                assert float(gaps[b, i]) == pytest.approx(float((new - before).norm()), rel=1e-8)
                assert (after.sigma[g][b, j, rank:] == 0).all()


def test_the_gradient_is_how_fast_the_prediction_grows() -> None:
    """⟨gradient, change⟩ is the derivative along the change, and no unit change does better than the gradient."""
    from lol_core.insight.editing import _gradient

    checkpoint = untrained()
    checkpoint.model.double()
    goal = Goal.parse(checkpoint.task, "hat=1")
    point = FixedRank.of(random_batch(count=1))
    slope = _gradient(checkpoint, point, goal)
    generator = torch.Generator().manual_seed(0)
    sides = [[torch.randn(f.shape, generator=generator, dtype=f.dtype) for f in of] for of in (point.P, point.Q)]
    change = point.project(list(zip(*sides, strict=True)))

    def margin(step: float) -> float:
        at = point.step(change.times(torch.tensor([step]).double()))
        return float(goal.margin(checkpoint.model(at.batch()))[0].detach())

    inner = sum(
        float((a * b).sum()) for x, y in ((slope.A, change.A), (slope.B, change.B)) for a, b in zip(x, y, strict=True)
    )
    assert (margin(1e-5) - margin(-1e-5)) / 2e-5 == pytest.approx(inner, rel=1e-4)
    assert abs(inner) < float(slope.norm * change.norm)


@pytest.mark.parametrize("method", Method)
def test_turning_r_first_gives_the_same_edit(method: Method) -> None:
    checkpoint = untrained()
    members, editor = some_members(checkpoint), some_editor(checkpoint)
    goal = Goal.parse(checkpoint.task, "beard=0")
    loras = [random_lora(seed=i, scale=0.5) for i in range(2)]
    others = [turned(lora, seed, 30.0) for seed, lora in enumerate(loras)]
    ours, theirs = (
        edit(checkpoint, some, goal, method=method, members=members, editor=editor, size=0.4, steps=5)
        for some in (loras, others)
    )
    for lora, one, two in zip(loras, ours, theirs, strict=True):
        before, after, again = whole(lora), whole(one.lora), whole(two.lora)
        assert (after - before).norm() == pytest.approx(0.4 * before.norm(), rel=2e-3)
        assert (again - after).norm() <= 1e-4 * (after - before).norm()
        assert one.moved == pytest.approx([0.08 * k for k in range(6)], rel=2e-3)
        assert one.by_module.pow(2).sum() ** 0.5 == pytest.approx(float((after - before).norm()), rel=1e-6)
        assert one.lora.layers[0].scale == 0.5 and one.lora.names == lora.names


def test_each_method_leads_where_it_says() -> None:
    checkpoint = untrained()
    members, lora = some_members(checkpoint), random_lora(seed=5)
    for wish, sign in (("hat=1", 1), ("hat=0", -1)):
        goal = Goal.parse(checkpoint.task, wish)
        way = edit(checkpoint, [lora], goal, method=Method.GRADIENT, size=0.2, steps=4)[0].predictions[:, 0]
        assert (sign * np.diff(way) > 0).all(), "uphill at every step"
    labels = members.labels["hat"].to_numpy()
    updates = [whole(random_lora(seed=10 + i)) for i in range(8)]
    means = [torch.stack([updates[i] for i in np.flatnonzero(labels == value)]).mean(0) for value in (0, 1)]
    made = edit(checkpoint, [lora], goal, method=Method.LINEAR, members=members, size=1e-3, steps=1)[0]
    expected = []  # the tangent part of the difference of the means, module by module
    for part, layer in zip((means[0] - means[1]).split([y.n * y.m for y in lora.layers]), lora.layers, strict=True):
        P, _, Q = layer.parametrisation.leading(layer.rank)
        G = part.view(layer.n, layer.m)
        expected.append((G @ Q @ Q.T + P @ P.T @ G - P @ P.T @ G @ Q @ Q.T).flatten())
    change = whole(made.lora) - whole(lora)
    cosine = torch.nn.functional.cosine_similarity(change, torch.cat(expected), dim=0)
    assert cosine > 1 - 1e-4


def test_the_pattern_weighs_the_collection_by_the_gradient() -> None:
    checkpoint = untrained()
    members, start = some_members(checkpoint), FixedRank.of(random_batch(count=1))
    change = Tangent(*(tuple(torch.randn_like(f) for f in of) for of in (start.P, start.Q)))
    dense = [
        sum(
            float(
                (
                    (change.A[g][0, j] @ start.Q[g][0, j].T + start.P[g][0, j] @ change.B[g][0, j].T)
                    * (members.batch.U[g][i, j] @ members.batch.V[g][i, j].T)
                ).sum()
            )
            for g, (_, indices) in enumerate(checkpoint.spec.groups)
            for j in range(len(indices))
        )
        for i in range(8)
    ]
    torch.testing.assert_close(members.inner(change, start)[0], torch.tensor(dense).double(), rtol=1e-4, atol=1e-3)


def test_an_editor_learns_what_the_model_reads_and_where_the_collection_goes(tmp_path: Path) -> None:
    """On LoRAs whose "hat" is planted in their updates; shown on one that it has not seen."""
    checkpoint, planted, lora = untrained(), random_lora(seed=99), random_lora(seed=5)
    checkpoint.model.head.out[-1].weight.data *= 30  # so that what it reads moves
    labels = pd.DataFrame({"hat": [0, 1] * 20, "beard": [0, 0, 1, 1] * 10})
    batch = stack([random_lora(seed=200 + i) for i in range(40)], checkpoint.spec)
    direction = stack([planted], checkpoint.spec)
    hats = torch.from_numpy(labels["hat"].to_numpy(np.float32)).view(-1, 1, 1, 1)
    batch = replace(
        batch,
        U=tuple(torch.cat([u, hats * d], -1) for u, d in zip(batch.U, direction.U, strict=True)),
        V=tuple(torch.cat([v, d.expand(len(v), -1, -1, -1)], -1) for v, d in zip(batch.V, direction.V, strict=True)),
        ranks=2 * batch.ranks,
    )
    goals = [Goal.parse(checkpoint.task, wish) for wish in ("hat=1", "hat=0")]
    made, losses = {}, {}
    for pairs in (0.0, 10.0):
        config = EditorConfig(epochs=20, batch_size=16, learning_rate=1e-2, atoms=8, compared=40, pairs=pairs)
        history: list[dict[str, float]] = []
        editor = train_editor(checkpoint, Members(batch, labels), config, history=history)
        losses[pairs] = [pd.DataFrame(rows).mean() for rows in (history[:5], history[-5:])]
        made[pairs] = [edit(checkpoint, [lora], goal, method=Method.EQUIVARIANT, editor=editor)[0] for goal in goals]
    first, last = losses[0.0]
    assert last["wish"] < 0.8 * first["wish"]
    there, gone = (one.predictions[-1, 0] for one in made[0.0])
    assert there > gone + 0.1
    first, last = losses[10.0]
    assert last["pairs"] < first["pairs"] - 0.05

    def with_the_planted(pairs: float) -> float:
        gap = whole(made[pairs][0].lora) - whole(made[pairs][1].lora)
        return float(torch.nn.functional.cosine_similarity(gap, whole(planted), dim=0))

    assert with_the_planted(10.0) > 0.1 > 2 * abs(with_the_planted(0.0))
    assert all(weight.grad is None for weight in checkpoint.model.parameters()), "the predictor stays as it was"
    checkpoint.folder = tmp_path
    with pytest.raises(CheckpointError, match="has no editor"):
        Editor.load(checkpoint)
    editor.save(tmp_path)
    again = edit(checkpoint, [lora], goals[1], method=Method.EQUIVARIANT, editor=Editor.load(checkpoint))[0]
    gap = whole(again.lora) - whole(made[10.0][1].lora)
    assert 0 < gap.norm() < 0.02 * whole(lora).norm(), "kept in float16"
    with pytest.raises(CheckpointError, match="trained with another model"):
        Editor.load(replace(checkpoint, created="later", folder=tmp_path))


@pytest.mark.parametrize(
    ("task", "column", "wish"),
    [
        (Regression(("score",), mean=(2.0,), std=(1.0,)), [1.0, 2.0, 3.0, np.nan], "score=3"),
        (Multiclass(("kind",), ("cat", "dog", "fish")), ["cat", "dog", "fish", None], "kind=dog"),
    ],
)
def test_an_editor_is_trained_for_numbers_and_classes_on_the_loras_that_have_them(
    task: Regression | Multiclass, column: list[object], wish: str
) -> None:
    loras = [random_lora(seed=i) for i in range(8)]
    model = make_model("gl_net", shared_spec(loras), task.outputs)
    checkpoint = Checkpoint(model, task, TrainingConfig(), {"train": []})
    members = Members(stack(loras, checkpoint.spec), pd.DataFrame({task.targets[0]: column * 2}))
    history: list[dict[str, float]] = []
    editor = train_editor(checkpoint, members, EditorConfig(epochs=2, atoms=2), history=history)
    assert len(history) == 2 and np.isfinite(pd.DataFrame(history)).all(axis=None)
    assert history[0]["others"] == 0, "a number alone, or classes, which are what the wished one is held against"
    goal = Goal.parse(task, wish)
    made = edit(checkpoint, loras[:1], goal, method=Method.EQUIVARIANT, editor=editor, size=0.2, steps=2)[0]
    assert made.moved[-1] == pytest.approx(0.2, rel=2e-3)
    with pytest.raises(TaskError, match="no labels"):
        train_editor(checkpoint, replace(members, labels=pd.DataFrame(index=range(8))))


def test_what_cannot_be_edited_is_said() -> None:
    checkpoint, lora = untrained(), random_lora()
    goal = Goal.parse(checkpoint.task, "hat=1")
    with pytest.raises(TaskError, match="'hat=2' is no wish for this model. It can be hat=1, hat=0, beard=1, beard=0"):
        Goal.parse(checkpoint.task, "hat=2")
    with pytest.raises(TaskError, match="needs a collection with labels"):
        edit(checkpoint, [lora], goal)
    for size in (0, math.nan, math.inf):
        with pytest.raises(TaskError, match="a finite size above 0"):
            edit(checkpoint, [lora], goal, method=Method.GRADIENT, size=size)
    with pytest.raises(ModelError, match="depends on R"):
        edit(untrained(model="mlp"), [lora], goal, method=Method.GRADIENT)
    with pytest.raises(TaskError, match="needs an editor that was trained with"):
        edit(
            checkpoint, [lora], goal, method=Method.EQUIVARIANT, editor=replace(some_editor(checkpoint), made="before")
        )
    with pytest.raises(ModelError, match="no gradient"):
        edit(untrained(model="nearest_spectra"), [lora], goal, method=Method.GRADIENT)
    zero = LoRA(tuple(layer.with_pair(0 * layer.U, layer.V) for layer in lora.layers))
    with pytest.raises(TaskError, match="nothing to move"):
        edit(checkpoint, [zero], goal, method=Method.LINEAR, members=some_members(checkpoint))
    same = replace(some_members(checkpoint), labels=pd.DataFrame({"hat": [1] * 8, "beard": [1, 0] * 4}))
    with pytest.raises(TaskError, match="'hat' has one value"):
        edit(checkpoint, [lora], goal, members=same)


def test_of_more_outputs_than_colours_the_wished_one_alone_is_named() -> None:
    for count, named in ((7, 7), (8, 1)):
        names = [f"label {i}" for i in range(count)]
        figure = edit_path([0.0, 0.5], np.zeros((2, count)), names, 2, step=1)
        shown = [line.name for line in figure.data if line.showlegend]
        assert len(figure.data) == count and len(shown) == named and "label 2" in shown


def test_numbers_and_classes_can_be_wished() -> None:
    score = Regression(("score",), mean=(2.0,), std=(0.5,))
    goal = Goal.parse(score, "score=2.25")
    assert goal.signs(torch.tensor([[0.0], [1.0]])).tolist() == [1, -1]
    way = edit(untrained(), [random_lora()], Goal.parse(BINARY, "hat=1"), method=Method.GRADIENT, steps=3)[0]
    assert way.reached == 3
    for values, reached in (([2.0, 2.2, 2.3, 2.4], 2), ([2.0, 2.1, 2.1, 2.2], 3), ([2.5, 2.2, 2.0, 1.9], 1)):
        ended = replace(way, goal=goal, predictions=np.array(values)[:, None])
        assert ended.reached == reached and ended.met == (reached < 3)
        gaps = [distance(after, before) for after, before in zip(ended.lora.layers, way.loras[0].layers, strict=True)]
        assert sorted(ended.by_module, reverse=True) == pytest.approx(sorted(gaps, reverse=True), rel=1e-6)
    classes = Multiclass(("kind",), ("cat", "dog", "fish"))
    goal = Goal.parse(classes, "kind=dog")
    assert (goal.output, goal.name) == (1, "kind=dog")
    assert goal.margin(torch.tensor([[0.0, 3.0, 0.0]])).item() == pytest.approx(3 - np.log(2))
    for last, met in (([0.3, 0.4, 0.3], True), ([0.5, 0.4, 0.1], False)):
        assert replace(way, goal=goal, predictions=np.array([last] * 4)).met == met
    assert not replace(way, predictions=np.array([[0.49, 0.9]] * 4)).met
    assert goal.numbers(pd.DataFrame({"kind": ["dog", "cat"]})).tolist() == [1, 0]
    assert score.wishes == ["score=NUMBER"]
    assert unmet(BINARY, np.array([0.9, 0.2])) == "hat=0" and unmet(BINARY, np.array([0.1, 0.9])) == "hat=1"
    assert unmet(classes, np.eye(len(classes.classes))[0]) == classes.wishes[1]
    with pytest.raises(TaskError, match="kind=cat, kind=dog"):
        Goal.parse(classes, "kind=bird")


def test_an_edited_file_of_a_person_has_the_keys_shapes_and_dtypes_of_its_own(tmp_path: Path) -> None:
    zoo, checkpoint = Zoo.open(SAMPLES / "faces"), Checkpoint.load(SAMPLES / "checkpoints/faces-attributes-gl-net")
    short = replace(checkpoint, split={"train": checkpoint.split["train"][:60]})
    bare = next(id for id in checkpoint.split["test"] if zoo.labels["Eyeglasses"][id] == 0)
    lora, members = zoo.load(bare), Members.of(short, zoo)
    made = edit(checkpoint, [lora], Goal.parse(checkpoint.task, "Eyeglasses=1"), members=members)[0]
    write(made.lora, tmp_path / "edited.safetensors", "diffusers")
    before, after = (load_file(path) for path in (zoo.path(bare) or Path(), tmp_path / "edited.safetensors"))
    assert {key: (t.shape, t.dtype) for key, t in before.items()} == {k: (t.shape, t.dtype) for k, t in after.items()}
    back = read(tmp_path / "edited.safetensors")
    gap = sum(distance(back[y.name], y) ** 2 for y in lora.layers) ** 0.5
    assert gap == pytest.approx(0.5 * sum(norm(y) ** 2 for y in lora.layers) ** 0.5, rel=5e-3)
    assert checkpoint.predict([back])[0, 0] > 0.9 > 0.5 > made.predictions[0, 0]
    with pytest.raises(TaskError, match="holds 0 of the LoRAs"):
        Members.of(replace(checkpoint, split={"train": []}), zoo)


def test_the_command_writes_an_edit_once_and_says_what_it_lacks(tmp_path: Path) -> None:
    folder, out = SAMPLES / "checkpoints/faces-attributes-gl-net", tmp_path / "edited"
    loras = SAMPLES / "faces" / "loras"

    def run(*options: object, lora: object = loras / "0008.safetensors", code: int = 0) -> Any:
        words = ["edit", lora, "--checkpoint", folder, "--to", "Beard=1", "--out", out, *options]
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else " ".join(result.output.split())

    assert "needs a collection with labels: give --of with what the model was trained on (faces)" in run(code=1)
    report = run("--method", "gradient", "--format", "kohya", "--json")
    assert report["form"] == "kohya" and report["steps"][-1]["p(Beard)"] > 0.9 > report["steps"][0]["p(Beard)"]
    assert report["steps"][-1]["moved"] == pytest.approx(0.5, rel=2e-3)
    made = read(tmp_path / "edited.safetensors")
    assert made.dialect.startswith("kohya") and len(report["modules"]) == len(made.layers)
    assert "is there already" in run("--method", "gradient", "--format", "kohya", code=1)
    elsewhere = run("--method", "gradient", "--of", tmp_path, "--force", "--json")
    assert elsewhere["steps"] == report["steps"], "gradient needs no collection and reads none"
    run("--method", "gradient", "--format", "kohya", "--size", "0.1", "--force", "--json")
    report = run("--method", "equivariant", "--force", "--json")
    assert report["steps"][-1]["p(Beard)"] > 0.9 and report["steps"][-1]["moved"] == pytest.approx(0.5, rel=2e-3)
    assert [str(one) for one in Direction] == [str(one) for one in Method]
    assert EditorConfig().epochs == EPOCHS


def test_the_commands_take_labels_from_elsewhere(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 24)
    labels = (tmp_path / "zoo" / "labels.csv").rename(tmp_path / "mine.csv")
    zoo, config = Zoo.open(tmp_path / "zoo", labels), TrainingConfig("gl_net", epochs=1)
    train(zoo, plan(zoo, ["size"], config), config, tmp_path / "model")
    of = ["--of", tmp_path / "zoo", "--labels", labels]
    edits = ["edit", zoo.ids[0], "--checkpoint", tmp_path / "model", "--to", "size=100"]
    for words in (["editor", tmp_path / "model", "--epochs", "1"], [*edits, "--out", tmp_path / "edited"]):
        result = CliRunner().invoke(app, list(map(str, words + of)))
        assert result.exit_code == 0, result.output
    assert read(tmp_path / "edited").layers


def test_the_command_says_which_step_it_wrote(tmp_path: Path) -> None:
    lora, out = SAMPLES / "faces" / "loras" / "0001.safetensors", tmp_path / "edited.safetensors"
    model = Checkpoint.load(SAMPLES / "checkpoints/faces-clip-score-gl-net")
    wish = f"clip_score={model.predict([read(lora)])[0, 0] + 0.01}"
    words = ["edit", lora, "--checkpoint", model.folder, "--to", wish, "--method", "gradient", "--out", out]
    report = json.loads(CliRunner().invoke(app, [*map(str, words), "--json"]).stdout)
    step = report["steps"][report["written step"]]
    assert 0 < report["written step"] < len(report["steps"]) - 1, "the wish is near"
    assert model.predict([read(out)])[0, 0] == pytest.approx(step["clip_score"], abs=1e-3)
    text = CliRunner().invoke(app, [*map(str, words), "--force"]).stdout
    assert f"the step of moved {step['moved']:.4g}, clip_score {step['clip_score']:.4g}" in " ".join(text.split())
    assert report["wish met"] and "is not reached" not in text
    text = CliRunner().invoke(app, [*map(str, words), "--size", "0.001", "--force"]).stdout
    assert " is not reached: give a larger --size" in " ".join(text.split())


def test_the_command_says_what_is_a_guess_and_what_it_does_not_write(tmp_path: Path) -> None:
    faces, folder = SAMPLES / "faces" / "loras", SAMPLES / "checkpoints/faces-attributes-gl-net"
    lora, key = tmp_path / "given.safetensors", "unet.conv_in.bias"
    save_file(load_file(faces / "0005.safetensors") | {key: torch.ones(3)}, lora)
    words = ["edit", lora, "--checkpoint", folder, "--to", "Beard=1", "--method", "gradient", "--force"]
    for size, outside in {"1.5": True, "0.001": False}.items():
        told = list(map(str, [*words, "--size", size, "--out", tmp_path / "edited.safetensors"]))
        result = CliRunner().invoke(app, told)
        assert f"no part of a low-rank product and left out: conv_in.bias (1), such as {key}" in result.stderr
        assert ("unlike the LoRAs it was trained on" in " ".join(result.stdout.split())) == outside
        report = json.loads(CliRunner().invoke(app, [*told, "--json"]).stdout)
        assert report["outside"] == outside and report["left out"] == [key]


def test_the_command_trains_an_editor_beside_a_model_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(SAMPLES / "checkpoints/faces-attributes-gl-net")
    checkpoint.split = checkpoint.split | {"train": checkpoint.split["train"][:40]}
    checkpoint.save(tmp_path)

    def run(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    file = SAMPLES / "faces/loras/0008.safetensors"
    edits = ("edit", file, "--checkpoint", tmp_path, "--to", "Beard=1", "--out", tmp_path / "edited")
    assert "has no editor, a network trained to edit with it. Train one: `lol editor " in run(
        *edits, "--method", "equivariant", code=1
    )
    train = ("editor", tmp_path, "--of", SAMPLES / "faces", "--epochs", 1)
    assert "Written to" in run(*train) and "is there already" in run(*train, code=1)
    run(*edits, "--method", "equivariant")
