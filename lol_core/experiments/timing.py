"""Preprocessing and forward passes of the five models, timed side by side on synthetic factors of any shape. Nothing
here was fine-tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from lol_core.core.batch import Batch, WeightSpec, turned
from lol_core.core.header import ModuleHeader
from lol_core.learning.models import LoLModel, ModelConfig, make_model

MEMORY_SHARE = 0.7
COPIES = 3
"""What a pass over a batch holds at once: its factors or features, and copies of them."""


@dataclass(frozen=True)
class Shape:
    """LoRAs to be timed: `layers` modules of n × m at rank r."""

    layers: int
    n: int
    m: int
    r: int

    @property
    def spec(self) -> WeightSpec:
        return WeightSpec(tuple(ModuleHeader(f"layer {i}", self.n, self.m, self.r) for i in range(self.layers)))

    def factors(self, count: int, device: torch.device) -> Batch:
        """Random factors, for timing only: they are no LoRAs."""
        generator = torch.Generator(device).manual_seed(0)
        U, V = (
            turned(torch.randn(self.layers, count, self.r, side, generator=generator, device=device))
            for side in (self.n, self.m)
        )
        return Batch(self.spec, (U,), (V,), torch.full((count, self.layers), self.r, device=device))


@dataclass(frozen=True)
class Needs:
    """Bytes of a model's weights, and of a pass over one LoRA."""

    weights: int
    each: int

    def batch(self, most: int, free: float) -> int:
        """The largest batch of at most `most` LoRAs that fits beside the weights; 0 when not even one does."""
        return int(max(0, min(most, (MEMORY_SHARE * free - self.weights) // self.each)))


@dataclass(frozen=True)
class Times:
    """Seconds for one LoRA, in a batch of `batch`."""

    preprocess: float
    forward: float
    batch: int


def needs(model: str, shape: Shape) -> Needs:
    """What a forward pass in float32 takes, found without allocating anything."""
    with torch.device("meta"):
        sketch = make_model(model, shape.spec, 1)
    factors = shape.spec.parameters
    return Needs(4 * sketch.n_parameters, 4 * COPIES * max(factors, sketch.n_features()))


def halves(model: LoLModel) -> tuple[Callable[[Batch], Any], Callable[[Any], Tensor]]:
    """What is done once for a LoRA, and what is done at every pass. Where features are learnt, factors are read as they
    are; otherwise they are made first.
    """
    if model.learnt_features:
        return model.normalized, lambda batch: model.head.out(model.head.latent(model.features(batch)))
    return lambda batch: model.features(model.normalized(batch)), lambda features: model.head.out(
        model.head.latent(features)
    )


@torch.no_grad()
def time_model(
    model: str,
    shape: Shape,
    batch: int,
    device: torch.device,
    *,
    at_least: float = 0.3,
    config: ModelConfig | None = None,
) -> Times:
    """Median times of an untrained model on a batch of synthetic factors, each measured for `at_least` seconds."""
    with torch.device("meta"):
        built = make_model(model, shape.spec, 1, config)
    built = built.to_empty(device=device).eval()
    for parameter in built.parameters():
        parameter.uniform_(-0.01, 0.01)
    for buffer in built.buffers():
        buffer.fill_(1.0)
    given = shape.factors(batch, device)
    built.prepare(given[:1], torch.Generator())
    first, then = halves(built)
    prepared = first(given)

    def seconds(call: Callable[[], Any]) -> float:
        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=at_least).median) / batch

    return Times(seconds(lambda: first(given)), seconds(lambda: then(prepared)), batch)
