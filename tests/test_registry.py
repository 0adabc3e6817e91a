"""Models by their names: those of the package, and those of a file outside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.groups import GL
from lol_core.core.symmetry import invariance_error
from lol_core.errors import ModelError
from lol_core.experiments.search import SMALL, Variant
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.leaderboard import verdict
from lol_core.learning.models import MODELS, LoLModel, find_model, make_model, registry
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.models.tucker import Part, TuckerConfig
from lol_core.learning.tasks import Binary
from lol_core.learning.training import plan, train
from lol_core.learning.verdict import Outcome
from tests.builders import MODULES, random_batch, random_lora
from tests.conftest import ROOT
from tests.test_models import made


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="mlp, o_align, svd, dense, gl_net"):
        make_model("transformer", random_batch().spec, 1)


OUTSIDE = """
from dataclasses import dataclass
import torch
from lol_core.core.geometry import singular_values
from lol_core.core.groups import GL
from lol_core.learning.models import LoLModel, ModelConfig, register

@dataclass(frozen=True)
class PowersConfig(ModelConfig):
    power: float = 2.0

@register("powers")
class Powers(LoLModel):
    Config = PowersConfig
    config: PowersConfig
    searched = ({"power": 1.0}, {"power": 2.0})
    title, symmetry, any_rank = "Powers", GL, True

    def n_features(self):
        return len(self.spec.modules)

    def features(self, batch):
        sums = [singular_values(U, V).pow(self.config.power).sum(-1) for U, V in zip(batch.U, batch.V)]
        return torch.cat(sums, 1)
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[str]:
    """A model that a file outside the package registers."""
    (tmp_path / "powers.py").write_text(OUTSIDE)
    registry.load(str(tmp_path / "powers.py"))
    yield "powers"
    del MODELS["powers"]


def test_a_model_of_a_file_outside_is_trained_kept_and_searched(
    outside: str, synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    kind = find_model(outside)
    config = TrainingConfig(model=outside, model_config=kind.configure(power=1.5, width=8), epochs=2)
    checkpoint = train(synthetic_zoo, plan(synthetic_zoo, ["size"], config), config, tmp_path / "run")
    back = Checkpoint.load(tmp_path / "run")
    assert back.config.shape == checkpoint.config.shape and "power" in back.config.shape.to_dict()
    assert invariance_error(made(outside, random_batch()), random_batch(), GL, condition=100.0) <= 1e-9
    variant = Variant.of(outside)
    tried = [SMALL.config(variant, setting, 0).shape for setting in replace(SMALL, options=None).settings(variant)]
    assert [shape.to_dict()["power"] for shape in tried] == [1.0, 2.0]


AWKWARD = """
from dataclasses import dataclass
from enum import Enum
import torch
from torch import nn
from lol_core.core.groups import GL
from lol_core.learning.models import LoLModel, ModelConfig, register

class Way(Enum):
    LOG = "log"
    PLAIN = "plain"

@dataclass(frozen=True)
class AwkwardConfig(ModelConfig):
    way: Way = Way.PLAIN
    powers: tuple[float, ...] = (1.0, 2.0)
    kept: bool = True

@register("awkward")
class Awkward(LoLModel):
    Config = AwkwardConfig
    config: AwkwardConfig
    title, symmetry, any_rank, learnt_features = "Awkward", GL, True, True

    def __init__(self, spec, outputs, config):
        super().__init__(spec, outputs, config)
        self.first = self.tied = nn.Linear(self.n_features(), self.n_features())
        self.register_buffer("mean", torch.zeros(1), persistent=config.kept)

    def n_features(self):
        return len(self.config.powers) * len(self.spec.modules)

    def prepare(self, sample, generator):
        super().prepare(sample, generator)
        self.mean.copy_(torch.full((1,), 3.0))

    def features(self, batch):
        norms = torch.cat([(U.mT @ U @ (V.mT @ V)).diagonal(0, -1, -2).sum(-1) for U, V in zip(batch.U, batch.V)], 1)
        norms = norms.abs().log() if self.config.way is Way.LOG else norms
        return self.first(self.tied(torch.cat([(norms - self.mean) ** power for power in self.config.powers], 1)))
"""


@pytest.fixture
def awkward(tmp_path: Path) -> Iterator[type[LoLModel]]:
    """A model of tied weights, with choices that JSON has no words for."""
    (tmp_path / "awkward.py").write_text(AWKWARD)
    registry.load(str(tmp_path / "awkward.py"))
    yield find_model("awkward")
    del MODELS["awkward"]


def test_choices_that_are_no_json_and_tied_weights_come_back(
    awkward: type[LoLModel], synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    shape = awkward.Config.from_dict({"way": "log", "powers": [2.0, 1.0]})
    config = TrainingConfig(model="awkward", model_config=shape, epochs=2)
    planned, out = plan(synthetic_zoo, ["size"], config), tmp_path / "run"
    train(synthetic_zoo, planned, config, out)
    longer = train(synthetic_zoo, planned, replace(config, epochs=3), out, resume=True)
    back = Checkpoint.load(out)
    assert len(longer.history) == 3 and back.config.shape == shape
    lora = synthetic_zoo.load(synthetic_zoo.ids[0])
    np.testing.assert_array_equal(longer.predict([lora]), back.predict([lora]))


def test_a_model_that_a_checkpoint_would_not_give_back_is_refused(
    awkward: type[LoLModel], synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    config = TrainingConfig(model="awkward", model_config=awkward.configure(kept=False), epochs=1)
    with pytest.raises(ModelError, match="register_buffer"):
        train(synthetic_zoo, plan(synthetic_zoo, ["size"], config), config, tmp_path / "run")


def test_a_file_of_models_that_cannot_be_used_is_a_sentence(outside: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        registry.load(str(tmp_path / "missing.py"))
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ModelError, match="cannot be loaded .ZeroDivisionError"):
        registry.load(str(tmp_path / "broken.py"))
    with pytest.raises(ModelError, match="There is a model 'svd' already"):
        registry.register("svd")(find_model(outside))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("title, any_rank = 'A', True", "must set `symmetry`"),
        ("symmetry, any_rank = GL, True", "must set `title`"),
        ("title, any_rank, symmetry = 'A', True, 'gl'", "must promise a Group .* found 'gl'"),
        ("features = LoLModel.features", "must set `title` and .* and must define `features`"),
    ],
)
def test_a_class_that_lacks_what_a_model_must_say_is_refused(body: str, found: str, tmp_path: Path) -> None:
    lines = ["from lol_core.core.groups import GL", "from lol_core.learning.models import LoLModel, register"]
    lines += ["@register('lacking')", "class Lacking(LoLModel):", "    n_features = features = len", f"    {body}"]
    (tmp_path / "lacking.py").write_text("\n".join(lines))
    with pytest.raises(ModelError, match=found):
        registry.load(str(tmp_path / "lacking.py"))
    with pytest.raises(ModelError, match="must be a subclass of LoLModel; found Tensor"):
        registry.register("tensor")(cast(Any, torch.Tensor))
    assert {"lacking", "tensor"}.isdisjoint(MODELS)


def test_features_of_another_shape_than_n_features_says_are_refused(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model(outside, random_batch().spec, 1), random_batch()
    right = model.features(batch)
    for features, found in ((right[:, :-1], r"\(\d+, \d+\)"), (right.sum(1), r"\(\d+,\)"), (None, "NoneType")):
        monkeypatch.setattr(model, "features", Mock(return_value=features))
        with pytest.raises(ModelError, match=rf"Powers: `features` must return .* found {found}\."):
            model(batch)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "def features(self, batch): return batch.nothing",
            r"`features` ended in an error .*faulty\.py, line 6 \(Att",
        ),
        ("def n_features(self): return 1 / 0", r"`n_features` ended in an error at .*line 6 \(ZeroDivisionError"),
        ("def __init__(self, spec): pass", r"`__init__` ended in an error at .*line 6 \(TypeError"),
        (
            "def forward(self, batch): return batch.U[0][:, 0, 0, :0]",
            r"`forward` must .* found \(\d+, 0\)",
        ),
        ("def make_head(self, k, outputs): return torch.nn.Linear(k, outputs)", "`make_head` must .* found Linear"),
    ],
)
def test_an_error_in_a_model_of_ones_own_names_model_method_and_line(
    body: str, reason: str, synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    lines = ["import torch", "from lol_core.learning.models import register"]
    lines += ["from lol_core.learning.models.registry import MODELS"]
    lines += ["@register('faulty')", "class Faulty(MODELS['dense']):", f"    {body}", "    title = 'Faulty'"]
    (tmp_path / "faulty.py").write_text("\n".join(lines))
    registry.load(str(tmp_path / "faulty.py"))
    config = TrainingConfig("faulty", epochs=1)
    try:
        with pytest.raises(ModelError, match=f"Faulty: {reason}"):
            train(synthetic_zoo, plan(synthetic_zoo, ["size"], config), config, tmp_path / "run")
    finally:
        del MODELS["faulty"]


def test_features_of_double_precision_are_read(outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(dtype=torch.float32)
    model = make_model(outside, batch.spec, 1)
    expected = model(batch)
    right = model.features(batch)
    monkeypatch.setattr(model, "features", Mock(return_value=right.double()))
    assert torch.equal(model(batch), expected)


def test_checkpoints_written_when_all_models_shared_one_configuration_load() -> None:
    """Written by the version before each model had its own; synthetic LoRAs."""
    folder = ROOT / "tests" / "checkpoints" / "format-1"
    gl_net, tucker, dsire = (Checkpoint.load(folder / name) for name in ("gl_net", "tucker", "dsire"))
    assert gl_net.config.shape == GLNetConfig(width=4, equivariant_width=2)
    assert gl_net.task == Binary(("positive", "second"))
    assert gl_net.metrics["test"].by_target["second"]["accuracy"] == pytest.approx(2 / 3)
    parts = frozenset(Part) - {Part.SIZES}
    assert tucker.config.shape == TuckerConfig(width=4, direction_weight=0.1, parts=parts)
    assert dsire.config.model == "nearest_spectra", "our variant had the published name"
    lora = random_lora(MODULES, 0, torch.float32)
    for known in (gl_net, tucker, dsire):
        assert np.isfinite(known.predict([lora])).all() and known.metrics["test"] and known.controls
        assert verdict(known).outcome is Outcome.NOT_CLEAR, "its differences were not measured"
