"""What all LoL models share: their input, their promise, their head."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from itertools import groupby
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.groups import Group
from lol_core.core.progress import SILENT, Reporter
from lol_core.core.symmetry import Stage
from lol_core.errors import ModelError
from lol_core.learning.link import Link
from lol_core.learning.models.layers import Head
from lol_core.learning.models.modulewise import NUMPY

SAME = 1e-5
"""Share by which a magnitude must differ among the training LoRAs to be divided by its deviation: below it is rounding,
and the magnitude is divided by its mean.
"""


@dataclass(frozen=True)
class ModelConfig:
    """Choices that every LoL model has; a model adds its own in a subclass. The usual ones are ours; the authors give
    each model and question a width of its own, and one hidden layer.

    width: hidden width of the head; depth: its hidden layers; dropout: in the head.
    normalize: divide each module's U and V by its training standard deviation (a scalar, so every symmetry is
    kept). Off, as in the paper: where LoRAs differ in size by orders of magnitude, the head's LayerNorm then still
    sees the size, and with it often the answer.
    """

    width: int = 64
    depth: int = 2
    dropout: float = 0.0
    normalize: bool = False

    @classmethod
    def known(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the options that this configuration has."""
        names = {field.name for field in fields(cls)}
        return {name: value for name, value in options.items() if name in names}

    def having(self, *choices: str) -> Self:
        """With choices written as NAME=VALUE, those of several parts as NAME=A,B. Raises ModelError for a name that the
        model has no choice of, and for a value of another type.
        """
        written = dict(choice.partition("=")[::2] for choice in choices)
        usual = vars(self)
        if unknown := sorted(written.keys() - usual.keys()):
            raise ModelError(f"This model has no choice {unknown[0]!r}. It has {', '.join(usual)}.")
        options = {name: _read(name, text, usual[name]) for name, text in written.items()}
        try:
            return self.from_dict(self.to_dict() | options)
        except ValueError as error:
            raise ModelError(f"{' '.join(choices)}: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """For JSON: of an enum its value."""
        return {name: choice.value if isinstance(choice, Enum) else choice for name, choice in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also as it was written when all models shared one configuration: where a choice is
        usually a tuple or of an enum, it is one again after JSON.
        """
        usual = {field.name: field.default for field in fields(cls)}
        return cls(**{name: _as_usual(choice, usual[name]) for name, choice in cls.known(data).items()})


def _read(name: str, text: str, usual: Any) -> Any:
    """A choice as it was written, of the type that the usual one has."""
    if isinstance(usual, frozenset):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        choice = json.loads(text)
    except ValueError:
        choice = text
    numbers = int | float if isinstance(usual, float) else type(usual)
    expected = str if isinstance(usual, Enum) else list if isinstance(usual, tuple) else numbers
    if not isinstance(choice, expected) or isinstance(choice, bool) != isinstance(usual, bool):
        raise ModelError(f"{name}={text}: {name} is usually {usual!r}; give something of that kind.")
    return choice


def _as_usual(choice: Any, usual: Any) -> Any:
    """A choice read from JSON, of the type that the usual one has."""
    if isinstance(usual, Enum):
        return type(usual)(choice)
    return _tuples(choice) if isinstance(usual, tuple) else choice


def _tuples(choice: Any) -> Any:
    return tuple(map(_tuples, choice)) if isinstance(choice, list | tuple) else choice


class LoLModel(nn.Module):
    """A model of LoRAs: `forward(batch)` → (B, outputs), `embed(batch)` → (B, width), both invariant under the
    group that `symmetry` names.

    Subclasses give `features(U, V)` → (B, k) of the (normalised) factors; DoRA magnitudes, which no group moves, are
    appended to them (appendix E), each standardised by the training LoRAs: they are norms of the base's rows, of which
    a fine-tune changes a few percent.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig
    searched: ClassVar[tuple[Mapping[str, Any], ...]] = ({"normalize": False}, {"normalize": True})
    """Options that a search tries beside the learning rate; the first ones are the usual ones."""

    title: ClassVar[str]
    symmetry: ClassVar[Group | None]
    any_rank: ClassVar[bool]
    linear: ClassVar[bool] = False
    """Whether the features go to the outputs without a hidden layer."""
    learnt_features: ClassVar[bool] = False
    """Whether the features depend on what is fitted, so that nothing of a LoRA can be computed before."""
    kept_features: ClassVar[bool] = False
    """Whether training computes the features once and keeps them: they are not learnt, and take longer than the head.
    """
    equivariant: ClassVar[bool] = False
    """Whether it has equivariant layers, whose factors `stages` shows."""
    memorizes: ClassVar[bool] = False
    """Whether it keeps its training LoRAs (`memorize`) instead of being fitted."""
    remembered: tuple[str, ...] = ()
    """Its buffers with a row for each training LoRA; of an instance, where they follow from the specification."""
    copies: ClassVar[int] = 1
    """How often it has the factors of all training LoRAs in memory while it memorizes them."""
    squares: ClassVar[int] = 0
    """How many matrices in float64 of the training LoRAs with each other it has then."""
    gives_away: ClassVar[str] = ""
    """What of its training LoRAs who publishes it publishes, beside names, latent vectors and norms."""

    def __init__(self, spec: WeightSpec, outputs: int, config: ModelConfig):
        super().__init__()
        if not self.any_rank and spec.mixed_ranks:
            raise ModelError(
                f"{self.title} takes LoRAs of one rank, and these have several. Choose SVD, Dense or GL-net, or"
                " those of one rank (--only rank=4, or by *Only LoRAs with* on the page Train)."
            )
        self.spec, self.config = spec, config
        features = self.n_features() + spec.magnitudes
        self.head: Any = self.make_head(features, outputs)
        asked = type(self).forward is LoLModel.forward
        if asked and not (hasattr(self.head, "latent") and hasattr(self.head, "out")):
            raise ModelError(
                f"{self.title}: `make_head` must return a module with `latent` and `out`; found"
                f" {type(self.head).__name__}."
            )
        for g, (_, indices) in enumerate(spec.groups):
            self.register_buffer(f"u_scale_{g}", torch.ones(len(indices), 1, 1))
            self.register_buffer(f"v_scale_{g}", torch.ones(len(indices), 1, 1))
        if spec.magnitudes:
            self.register_buffer("magnitude_mean", torch.zeros(spec.magnitudes))
            self.register_buffer("magnitude_scale", torch.ones(spec.magnitudes))

    @classmethod
    def configure(cls, **options: Any) -> ModelConfig:
        """Its configuration with those of the options that it has: the others are choices of other models. What is None
        stays as the model has it.
        """
        chosen = {name: option for name, option in options.items() if option is not None}
        return cls.Config(**cls.Config.known(chosen))

    @classmethod
    def configured(cls, config: ModelConfig | None) -> ModelConfig:
        """The given configuration, with its own choices as usual where it holds only those that every model has. Raises
        ModelError for that of another model.
        """
        if config is None or type(config) is ModelConfig:
            return cls.configure(**({} if config is None else vars(config)))
        if not isinstance(config, cls.Config):
            raise ModelError(f"{cls.title} is configured by {cls.Config.__name__}; found {type(config).__name__}.")
        return config

    def stages(self, batch: Batch) -> list[Stage]:
        """The equivariant layers of a model that has them, step by step, of the normalised factors."""
        raise NotImplementedError

    def make_head(self, features: int, outputs: int) -> nn.Module:
        """A module with `latent` and `out`."""
        return Head(
            features, outputs, self.config.width, 0 if self.linear else self.config.depth, dropout=self.config.dropout
        )

    def n_features(self) -> int:
        """Length of what `features` returns."""
        raise NotImplementedError

    def features(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self, sample: Batch, generator: torch.Generator) -> None:
        """Set what is taken from the training set before fitting: the scales of the inputs, and O-Align's
        templates. `sample`: training LoRAs. What is set must be a parameter or a buffer, for a checkpoint keeps nothing
        else.
        """
        if sample.magnitudes is not None:
            mean, std = sample.magnitudes.mean(0), sample.magnitudes.std(0, correction=0)
            spread = torch.where(std > SAME * mean.abs(), std, mean.abs())
            self.get_buffer("magnitude_mean").copy_(mean)
            self.get_buffer("magnitude_scale").copy_(torch.where(spread > 0, 1 / spread, torch.ones_like(spread)))
        if not self.config.normalize:
            return
        for g in range(len(self.spec.groups)):
            for side, factors in (("u", sample.U[g]), ("v", sample.V[g])):
                true = (sample.ranks[:, self.spec.groups[g][1]].sum(0) * factors.shape[2]).clamp(min=1)
                std = (factors.square().sum((0, 2, 3)) / true).sqrt()
                self.get_buffer(f"{side}_scale_{g}").copy_(
                    torch.where(std > 0, 1 / std, torch.ones_like(std))[:, None, None]
                )

    def memorize(
        self, batch: Batch, answers: Tensor, *, link: Link = Link.IDENTITY, reporter: Reporter = SILENT
    ) -> None:
        """Keep the training LoRAs. answers: (B, outputs) outputs that decode to their labels (`Task.answers`); link: of
        their task. Raises Stopped when the reporter says so.
        """
        raise NotImplementedError

    def normalized(self, batch: Batch) -> Batch:
        """The batch as the features read it, magnitudes standardised; the same factors where nothing is normalised,
        whose scales are 1.
        """
        if batch.magnitudes is not None:
            centred = batch.magnitudes - self.get_buffer("magnitude_mean")
            batch = replace(batch, magnitudes=centred * self.get_buffer("magnitude_scale"))
        if not self.config.normalize:
            return batch
        U = tuple(u * self.get_buffer(f"u_scale_{g}") for g, u in enumerate(batch.U))
        V = tuple(v * self.get_buffer(f"v_scale_{g}") for g, v in enumerate(batch.V))
        return Batch(batch.spec, U, V, batch.ranks, batch.magnitudes)

    def check_input(self, batch: Batch) -> None:
        """Raises ModelError when the batch holds ranks this model cannot take."""
        expected = [module.rank for module in self.spec.modules]
        if not self.any_rank and (batch.ranks != torch.tensor(expected, device=batch.ranks.device)).any():
            raise ModelError(
                f"{self.title} was made for rank {self.spec.rank} and takes no other; found ranks"
                f" {sorted(set(batch.ranks.flatten().tolist()))}."
            )

    def described(self, batch: Batch) -> Tensor:
        """What the head reads of each LoRA: its features, and its DoRA magnitudes where it has them. Raises ModelError
        where the features are not (B, n_features).
        """
        self.check_input(batch)
        batch = self.normalized(batch)
        features, expected = self.features(batch), (len(batch), self.n_features())
        if not isinstance(features, Tensor) or features.shape != expected:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ModelError(
                f"{self.title}: `features` must return a tensor of shape {expected}, a row for each LoRA and a column"
                f" for each of `n_features`; found {found}."
            )
        features = features.to(self.dtype)
        return features if batch.magnitudes is None else torch.cat([features, batch.magnitudes], 1)

    def embed(self, batch: Batch) -> Tensor:
        """The latent vector of each LoRA: (B, width)."""
        return self.head.latent(self.described(batch))

    def forward(self, batch: Batch) -> Tensor:
        return self.head.out(self.embed(batch))

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` and `embed` give, (B, outputs) and (B, width), for little more than one of them."""
        latents = self.embed(batch)
        own = type(self).forward is not LoLModel.forward
        return self(batch) if own else self.head.out(latents), latents

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint from before magnitudes were standardised reads them as it did then. How many LoRAs are
        remembered is not part of the specification, so those buffers take the size of what is loaded.
        """
        for name in self.remembered:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        for name in {"magnitude_mean", "magnitude_scale"} & dict(self.named_buffers(recurse=False)).keys():
            state_dict.setdefault(prefix + name, self.get_buffer(name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def device(self) -> torch.device:
        return self.get_buffer("u_scale_0").device

    @property
    def dtype(self) -> torch.dtype:
        return self.get_buffer("u_scale_0").dtype

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(frozen=True)
class FlatPlace:
    """Where the flattened factors of modules of one shape and rank, which follow each other in their group, are.

    modules: which of the group; columns: of (B, Σ (n + m) r); rows: those of U and those of V, of n + m.
    """

    modules: slice
    columns: slice
    rows: tuple[slice, slice]
    rank: int

    def within(self, flat: Tensor, side: int) -> Tensor:
        """Where U (side 0) or V (1) of these modules lie: (B, modules, n, rank), a view."""
        shape = self.modules.stop - self.modules.start, self.rows[1].stop, self.rank
        return flat[:, self.columns].view(len(flat), *shape)[:, :, self.rows[side]]


def flat_places(spec: WeightSpec) -> list[list[FlatPlace]]:
    """Of each group of modules."""
    groups, at = [], 0
    for (n, m), indices in spec.groups:
        places, ranks = list[FlatPlace](), [spec.modules[i].rank for i in indices]
        for rank, run in groupby(range(len(ranks)), ranks.__getitem__):
            modules = list(run)
            end = at + len(modules) * (n + m) * rank
            rows = slice(0, n), slice(n, n + m)
            places.append(FlatPlace(slice(modules[0], modules[-1] + 1), slice(at, end), rows, rank))
            at = end
        groups.append(places)
    return groups


def flat_memory(batch: Batch) -> Tensor:
    """Memory for all entries of all factors of each LoRA: (B, Σ (n + m) r). On a processor NumPy claims it, in pages of
    2 MB where the system has them: in small pages that takes longer than what is computed for it.
    """
    shape = len(batch), batch.spec.parameters
    if batch.device.type == "cpu" and batch.dtype in NUMPY:
        return torch.from_numpy(np.empty(shape, NUMPY[batch.dtype]))
    return batch.U[0].new_empty(shape)


def flat_factors(batch: Batch) -> Tensor:
    """All entries of all factors of each LoRA: (B, Σ (n + m) r). Columns that are padding in every module are left
    out.
    """
    flat = flat_memory(batch)
    for places, *sides in zip(flat_places(batch.spec), batch.U, batch.V, strict=True):
        for place in places:
            for side, factors in enumerate(sides):
                place.within(flat, side).copy_(factors[:, place.modules, :, : place.rank])
    return flat
