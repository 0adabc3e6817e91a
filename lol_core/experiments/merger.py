"""The learned mergers of the sample zoos: trained on pairs of LoRAs of which none is in a pair that `merges` judges.

What a merge should do is asked without drawing by it: on Faces that the GL-net which reads attributes from LoRAs reads
those of both, on Emojinette the base model's fine-tuning loss on pictures of either's classes, on Glosses its loss on
validation questions of either's own sources.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lol_core.core.batch import stack
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.progress import SILENT, Reporter
from lol_core.core.svd import svd_of_product
from lol_core.experiments.merge_readings import Emojinette, Faces, Glosses, Pair, Reading
from lol_core.experiments.merges import PAIRS
from lol_core.finetuning.base_model import diffusion_loss, pixels
from lol_core.finetuning.pictures import Drawings, one_of, one_thing
from lol_core.insight.learned import MERGERS
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.merger import Meeting, Merger, Update

if TYPE_CHECKING:
    from lol_core.finetuning.dreambooth import Base

Factors = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MergerConfig:
    """pairs, held: how many are trained on, and on how many that share no LoRA with them the goal is measured; merges:
    in a step; examples: pictures or questions that each merge is asked about.
    """

    pairs: int = 96
    held: int = 24
    steps: int = 150
    merges: int = 2
    examples: int = 16
    learning_rate: float = 1e-2
    weight_decay: float = 1e-3
    seed: int = 0


class Goal(ABC):
    """What is asked of a merge. config: of the merger that comes with the package."""

    config: ClassVar = MergerConfig()

    def __init__(self, reading: Reading, names: Sequence[str]):
        self.reading, self.names = reading, names

    @abstractmethod
    def loss(self, factors: Factors, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        """Of the merge U Vᵀ of every module, on about `count` examples of what both LoRAs are for."""


class Read(Goal):
    """That a model which reads attributes from a LoRA reads those of both. As it could be talked into them, the merge
    stays near the sum.
    """

    config = MergerConfig(pairs=400, steps=100, merges=4, learning_rate=3e-3)
    near = 0.1
    """Weight of ‖M − ΣΔW‖² / ‖ΣΔW‖²."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.load(self.reading.samples / "checkpoints" / "faces-attributes-gl-net")

    def loss(self, factors: Factors, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        layers = [LoRALayer.pair(name, U, V) for name, (U, V) in zip(self.names, factors, strict=True)]
        model, task = self.checkpoint.model.eval(), self.checkpoint.task
        outputs = model(stack([LoRA(tuple(layers), "diffusers")], self.checkpoint.spec, torch.float32))[0]
        asked = [outputs[task.targets.index(name)] for name in (*pair.of_one, *pair.of_two)]
        return nn.functional.softplus(-torch.stack(asked)).mean() + self.near * self._away(factors, pair)

    @cached_property
    def sums(self) -> Callable[[Pair], list[Tensor]]:
        """ΔW₁ + ΔW₂ of every module of a pair: (n, m)."""
        return lru_cache(maxsize=None)(self._sums)

    def _sums(self, pair: Pair) -> list[Tensor]:
        one, two = (self.reading.zoo.load(id) for id in (pair.one, pair.two))
        return [one[name].delta(torch.float64) + two[name].delta(torch.float64) for name in self.names]

    def _away(self, factors: Factors, pair: Pair) -> Tensor:
        wholes = self.sums(pair)
        gaps = [(U @ V.T - whole).square().sum() for (U, V), whole in zip(factors, wholes, strict=True)]
        return torch.stack(gaps).sum() / sum(float(whole.square().sum()) for whole in wholes)


class Worn(Goal):
    """A loss of the base model that wears the merge."""

    @abstractmethod
    def linear(self, name: str) -> nn.Linear:
        """The layer of the base model that a module of a LoRA adapts."""

    @abstractmethod
    def worn(self, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        """Of the base model as it is dressed now."""

    def loss(self, factors: Factors, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        def hook(U: Tensor, V: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda _, args, out: out + args[0] @ V.float() @ U.float().T

        handles = [
            self.linear(name).register_forward_hook(hook(*of)) for name, of in zip(self.names, factors, strict=True)
        ]
        try:
            return self.worn(pair, count, generator)
        finally:
            for handle in handles:
                handle.remove()


class OfPictures(Worn):
    """The fine-tuning loss on drawn pictures of either's classes."""

    config = MergerConfig(pairs=64, held=16)
    drawn = 8
    """Pictures of each pair, drawn once; noise and time are drawn anew for every example."""

    @cached_property
    def base(self) -> Base:
        from lol_core.finetuning.dreambooth import Base  # imports diffusers

        return Base(self.reading.samples / "small-diffusion")

    @cached_property
    def drawings(self) -> Drawings:
        return Drawings(self.reading.samples / "pictures" / "drawings.json")

    def linear(self, name: str) -> nn.Linear:
        layer = self.base.unet.get_submodule(name.removeprefix("unet."))
        assert isinstance(layer, nn.Linear)
        return layer

    @cached_property
    def latents(self) -> Callable[[Pair], Tensor]:
        """Of the pictures of a pair: (k, c, h, w)."""
        return lru_cache(maxsize=None)(self._latents)

    @torch.no_grad()
    def _latents(self, pair: Pair) -> Tensor:
        rng = np.random.default_rng([*map(ord, pair.one + pair.two)])
        designs, images = tuple(self.drawings.designs), []
        for number in range(self.drawn):
            thing = one_of(rng, pair.of_one if number % 2 else pair.of_two)
            images.append(np.asarray(one_thing(self.drawings, thing, one_of(rng, designs), rng)[0]))
        vae = self.base.pipeline.vae
        return vae.encode(pixels(np.stack(images))).latent_dist.mean * vae.config.scaling_factor

    def worn(self, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        latents, scheduler = self.latents(pair), self.base.scheduler
        rows = torch.arange(count) % len(latents)
        noise = torch.randn((count, *latents.shape[1:]), generator=generator)
        parts = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        times = (parts * len(scheduler.alphas_cumprod)).long()
        text = self.base.text(pair.prompt).expand(count, -1, -1)
        return diffusion_loss(self.base.unet, scheduler, latents[rows], text, noise=noise, timesteps=times).mean()


class OfQuestions(Worn):
    """The loss on validation questions, averaged over either's own sources."""

    reading: Glosses

    def linear(self, name: str) -> nn.Linear:
        return self.reading.linear(name)

    @cached_property
    def questions(self) -> Any:
        return self.reading.of_split("validation")

    def worn(self, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        sides = []
        for own in (pair.of_one, pair.of_two):
            rows = torch.from_numpy(np.flatnonzero(np.isin(self.questions.source, own)))
            rows = rows[torch.randperm(len(rows), generator=generator)[: count // 2]]
            logits = self.questions.logits(self.reading.encoder, rows)
            sides.append(nn.functional.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.long)))
        return torch.stack(sides).mean()


GOALS: dict[type[Reading], type[Goal]] = {Faces: Read, Emojinette: OfPictures, Glosses: OfQuestions}


def split_pairs(reading: Reading, config: MergerConfig) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs to measure on; no LoRA is in both, and none in a pair that `merges` judges."""
    judged = {id for pair in reading.pairs(PAIRS[reading.zoo_name]) for id in (pair.one, pair.two)}
    rng = np.random.default_rng(config.seed)
    pairs = [pair for pair in reading.others(rng) if not judged & {pair.one, pair.two}]
    ids = sorted({id for pair in pairs for id in (pair.one, pair.two)})
    held = set(rng.permutation(ids)[: len(ids) // 4])
    parts = ([p for p in pairs if not held & {p.one, p.two}], [p for p in pairs if held >= {p.one, p.two}])
    counts = (config.pairs, config.held)
    train, test = (
        [part[i] for i in rng.permutation(len(part))[:count]] for part, count in zip(parts, counts, strict=True)
    )
    return train, test


def cut(U: Tensor, V: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest U′V′ᵀ of this rank; its gradient leaves the turning of the column space out."""
    P = svd_of_product(U.detach(), V.detach())[0][:, :rank]
    return P, V @ (U.T @ P)


def train_merger(reading: Reading, config: MergerConfig | None = None, reporter: Reporter = SILENT) -> Merger:
    """A merger, with what was measured of it on held pairs in `about`. config: None for the goal's. Raises Stopped."""
    config = config or GOALS[type(reading)].config
    train, test = split_pairs(reading, config)
    layers = reading.zoo.load(train[0].one).layers
    names, rank = [layer.name for layer in layers], max(layer.rank for layer in layers)
    goal = GOALS[type(reading)](reading, names)
    loras = {id: _updates(reading, id, names) for pair in (*train, *test) for id in (pair.one, pair.two)}
    torch.manual_seed(config.seed)
    merger = Merger({layer.name: (layer.n, layer.m) for layer in layers})
    merger.settle(
        torch.stack(
            [
                torch.stack([Meeting(*both).invariants for both in zip(loras[a], loras[b], strict=True)])
                for pair in train
                for a, b in ((pair.one, pair.two), (pair.two, pair.one))
            ]
        )
    )
    draws = torch.Generator().manual_seed(config.seed)

    def loss(merged: Factors, pair: Pair, count: int, generator: torch.Generator) -> Tensor:
        return goal.loss([cut(U, V, rank) for U, V in merged], pair, count, generator)

    weights = list(merger.parameters())
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        optimizer.zero_grad()
        for i in torch.randint(len(train), (config.merges,), generator=draws).tolist():
            pair = train[i]
            merged = merger.merged([loras[pair.one], loras[pair.two]], [1.0, 1.0])
            (loss(merged, pair, config.examples, draws) / config.merges).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        reporter.count(f"{reading.zoo_name}: step", step + 1, config.steps)
        reporter.check("No merger was kept.")
    merger.eval().requires_grad_(False)
    sum_of = Merger(merger.modules_of).requires_grad_(False)
    measured: dict[str, list[float]] = {}
    with torch.no_grad():
        for number, pair in enumerate(test):
            both = [loras[pair.one], loras[pair.two]]
            for way, by, weight in (("learned", merger, 1.0), ("sum", sum_of, 1.0), ("mean", sum_of, 0.5)):
                asked = torch.Generator().manual_seed(number)
                merged = by.merged(both, [weight, weight])
                measured.setdefault(way, []).append(loss(merged, pair, 4 * config.examples, asked).item())
    means = {way: float(np.mean(values)) for way, values in measured.items()}
    merger.about = {
        "zoo": reading.zoo_name,
        "fingerprint": reading.zoo.fingerprint,
        "pairs": len(train),
        "held pairs": len(test),
        "loss on held pairs": {way: round(value, 4) for way, value in means.items()},
        "config": asdict(config),
    }
    return merger


def _updates(reading: Reading, id: str, names: Sequence[str]) -> list[Update]:
    lora = reading.zoo.load(id)
    return [Update.of(lora[name]) for name in names]


def train_mergers(samples: Path, reporter: Reporter = SILENT, folder: Path = MERGERS) -> None:
    """Train those that are missing in the folder."""
    for number, reading in enumerate(GOALS):
        path = folder / f"{reading.zoo_name}.json"
        if not path.is_file():
            part = reporter.part(number / len(GOALS), (number + 1) / len(GOALS))
            merger = train_merger(reading(samples, folder), reporter=part)
            merger.save(path)
            print(json.dumps(merger.about))


if __name__ == "__main__":
    train_mergers(Path(sys.argv[1]), Reporter(lambda progress: print(f"{progress.fraction:.0%} {progress.message}")))
