"""What is tried for a model in an experiment: a grid at every split, or successive halving at one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from lol_core.learning.config import Keep, TrainingConfig
from lol_core.learning.models import MODELS

SHUFFLED = "shuffled labels"
OF_TRAINING = frozenset(field.name for field in fields(TrainingConfig)) - {"model", "model_config", "seed"}
"""Options of a setting that are the training's and not the model's."""


@dataclass(frozen=True)
class Setting:
    """One point of a search: a learning rate, and options of the training or of the model's configuration."""

    learning_rate: float
    options: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a line of fits."""
        return {"learning_rate": self.learning_rate} | dict(self.options)

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Setting:
        options = tuple((name, value) for name, value in line.items() if name != "learning_rate")
        return cls(line["learning_rate"], options)

    def having(self, **options: Any) -> Setting:
        return Setting(self.learning_rate, tuple((dict(self.options) | options).items()))


@dataclass(frozen=True)
class Variant:
    """A model as it stands in an experiment. name: of its lines of fits; options: of its configuration, beside what is
    searched; fixed: its one setting, where nothing is searched; splits: it is fitted at the first so many, at all when
    None.
    """

    model: str
    name: str
    title: str
    options: tuple[tuple[str, Any], ...] = ()
    fixed: Setting | None = None
    splits: int | None = None

    @classmethod
    def of(cls, model: str | Variant) -> Variant:
        return model if isinstance(model, Variant) else cls(model, model, MODELS[model].title)

    @property
    def shuffled(self) -> str:
        """The name of the lines of the same model on shuffled labels."""
        return f"{self.name}, {SHUFFLED}"


TWO_ORDERS = Variant("two_orders", "two_orders", MODELS["two_orders"].title, fixed=Setting(1e-3))
"""Nothing of it is searched: the rate is not read."""


@dataclass(frozen=True)
class Rung:
    """Everything that is still in the search is fitted for so many epochs; the best `kept` go on."""

    epochs: int
    kept: int


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson and Talwalkar, 2016), each rung from the start: so many settings for every model,
    drawn from its grid, fewer from rung to rung by the validation score that the table reports.

    Done on one split; the winner is used on the others, whose test LoRAs were training or validation LoRAs of the
    first.
    """

    settings: int = 24
    rungs: tuple[Rung, ...] = (Rung(4, 8), Rung(15, 3), Rung(60, 1))

    def drawn(self, variant: Variant) -> tuple[Setting, ...]:
        """The same ones whenever it is asked; one where nothing is searched."""
        if variant.fixed is not None:
            return (variant.fixed,)
        if MODELS[variant.model].memorizes:
            return (Setting(1e-3),)
        grid = full_grid(variant.model)
        chosen = np.random.default_rng(0).permutation(len(grid))[: self.settings]
        return tuple(grid[i].having(keep=Keep.BEST_SCORE.value) for i in sorted(chosen))

    def at(self, rung: int, setting: Setting) -> Setting:
        """A setting as it is fitted on a rung."""
        return setting.having(epochs=self.rungs[rung].epochs)


RATES = (1e-4, 3e-4, 1e-3, 3e-3)
HEADS = ((64, 1), (128, 1), (256, 1), (64, 2))
"""Width and hidden layers."""
BATCHES = (8, 32)
DROPOUTS = (0.0, 0.1, 0.3)
OWN: Mapping[str, tuple[str, Sequence[Any]]] = {
    "gl_net": ("equivariant_width", (16, 32, 64)),
    "spectral": ("weight_decay", (0.0, 1e-2, 1e-1)),
    "mvprobe": ("place", (0.25, 0.5, 0.75)),
    "probex": ("place", (0.25, 0.5, 0.75)),
}
"""Model → the option of its own that is searched; dropout for all others. Of MVProbe and ProbeX, which read one module,
which it is."""


def full_grid(model: str) -> list[Setting]:
    """All settings that a search draws from."""
    kind = MODELS[model]
    name, values = OWN.get(model, ("dropout", DROPOUTS))
    heads = HEADS[:1] if kind.linear else HEADS
    return [
        Setting(rate, (*options.items(), (name, value), ("width", width), ("depth", depth), ("batch_size", batch)))
        for options, value, (width, depth), batch, rate in product(kind.searched, values, heads, BATCHES, RATES)
    ]


@dataclass(frozen=True)
class Budget:
    """How much is spent: seeds (each another split and initialisation), learning rates, at each of which every model is
    tried with each of its `searched` options, epochs, patience. search: in place of that grid.

    options: at most so many of a model's options, all when None; loras: at most so many of a zoo, all when None;
    known: at most so many of a training part, all when None; width: of the heads whose setting names none.
    """

    seeds: int = 5
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    options: int | None = None
    dropout: float = 0.1
    epochs: int = 60
    patience: int = 10
    loras: int | None = None
    known: int | None = None
    width: int | None = None
    search: Halving | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a fit depends on beside its model, seed and setting."""
        left_out = {"seeds", "learning_rates", "options"}
        left_out |= {name for name in ("known", "width", "search") if getattr(self, name) is None}
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def settings(self, variant: Variant) -> tuple[Setting, ...]:
        """What is tried for a model at the start: one setting where nothing is fitted or searched."""
        if self.search is not None:
            return self.search.drawn(variant)
        if variant.fixed is not None:
            return (variant.fixed,)
        kind = MODELS[variant.model]
        rates = self.learning_rates[:1] if kind.memorizes else self.learning_rates
        return tuple(
            Setting(rate, tuple(options.items())) for rate in rates for options in kind.searched[: self.options]
        )

    def config(self, variant: Variant, setting: Setting, seed: int) -> TrainingConfig:
        usually = {"dropout": self.dropout} | ({"width": self.width} if self.width else {})
        options = usually | dict(variant.options) | dict(setting.options)
        training = {name: value for name, value in options.items() if name in OF_TRAINING}
        model = {name: value for name, value in options.items() if name not in OF_TRAINING}
        usual = {"epochs": self.epochs, "patience": self.patience, "learning_rate": setting.learning_rate, "seed": seed}
        if self.loras is not None and "epochs" in training:
            training["epochs"] = min(training["epochs"], self.epochs)
        plain = TrainingConfig(model=variant.model).to_dict()
        return TrainingConfig.from_dict({**plain, "model_config": model, **usual, **training})


SMALL = Budget(seeds=1, learning_rates=(1e-3,), options=1, epochs=2, patience=2, loras=60, width=4)
"""Seconds: for a look at how it runs. Its scores mean nothing."""
SMALL_SEARCH = Halving(2, (Rung(1, 1), Rung(2, 1)))
