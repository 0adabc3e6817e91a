"""A merger: a network that is trained to merge LoRAs of one base model, and reads each by its ΔW alone.

Of two updates of a module, ΔWᵢ is taken apart by where it meets the other: with Cⱼ and Rⱼ the projections on ΔWⱼ's
column and row space, the merge is Σᵢ a ΔWᵢ + b Cⱼ ΔWᵢ + c ΔWᵢ Rⱼ + d Cⱼ ΔWᵢ Rⱼ + e ΔWᵢ⁰, ΔWᵢ⁰ being ΔWᵢ with equal
singular values. The coefficients a … e are what the network makes of numbers that neither gauge nor rotation changes.
All terms turn with n × n and m × m rotations of the weight, and the two LoRAs are treated alike, so the merge does not
depend on their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lol_core.collections.durable import replace_file
from lol_core.core.lora import LoRALayer
from lol_core.core.making import MAKING
from lol_core.errors import CheckpointError

TERMS = 5
INVARIANTS = 9
SOFT = 0.1
"""Singular values well above this share of the largest span a space; the projection on it is soft, 1 for those and 0
for far smaller ones, so that it is continuous in ΔW and needs no decision on a rank.
"""
TINY = 1e-30


@dataclass(frozen=True)
class Update:
    """ΔW = P diag(σ) Qᵀ of a module, in float64: P (n, k), values (k,), Q (m, k)."""

    P: Tensor
    values: Tensor
    Q: Tensor

    @classmethod
    def of(cls, layer: LoRALayer) -> Self:
        P, values, Q = layer.parametrisation.leading(max(layer.weight_shape))
        return cls(P if layer.scale >= 0 else -P, abs(layer.scale) * values, Q)

    @cached_property
    def energy(self) -> Tensor:
        """‖ΔW‖²."""
        return self.values.square().sum()

    @cached_property
    def inside(self) -> Tensor:
        """How far each singular direction counts as spanned: (k,), in [0, 1)."""
        squares = self.values.square()
        return squares / (squares + (SOFT * self.values.max()) ** 2).clamp_min(TINY)

    @cached_property
    def flat(self) -> Tensor:
        """Singular values that are about equal, of the same energy: (k,)."""
        equal = self.inside.sqrt()
        return equal * (self.energy / equal.square().sum().clamp_min(TINY)).sqrt()


@dataclass(frozen=True)
class Meeting:
    """One update beside another of the same module. invariants: (INVARIANTS,), what the network reads."""

    one: Update
    other: Update

    @cached_property
    def columns(self) -> Tensor:
        """Pⱼᵀ Pᵢ, weighed by how far ΔWⱼ spans its directions: (k_j, k_i)."""
        return self.other.inside[:, None] * (self.other.P.T @ self.one.P)

    @cached_property
    def rows(self) -> Tensor:
        """As `columns`, of the row spaces."""
        return self.other.inside[:, None] * (self.other.Q.T @ self.one.Q)

    @cached_property
    def invariants(self) -> Tensor:
        one, other = self.one, self.other
        a, b = one.energy.sqrt(), other.energy.sqrt()
        product = ((one.P.T @ other.P) * (one.values[:, None] * (one.Q.T @ other.Q) * other.values)).sum()
        spanned = (one.inside.square().sum() * other.inside.square().sum()).sqrt().clamp_min(TINY)
        largest = [update.values.max().square().clamp_min(TINY) for update in (one, other)]
        return torch.stack(
            [
                (a - b) / (a + b).clamp_min(TINY),
                product / (a * b).clamp_min(TINY),
                (self.columns.square() * one.inside).sum() / spanned,
                (self.rows.square() * one.inside).sum() / spanned,
                (self.columns * one.values).norm() / a.clamp_min(TINY),
                (self.rows * one.values).norm() / a.clamp_min(TINY),
                (one.energy / largest[0]).clamp_min(1).log(),
                (other.energy / largest[1]).clamp_min(1).log(),
                ((one.energy + other.energy) / 2).clamp_min(TINY).log(),
            ]
        )

    def factors(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of ΔWᵢ added up, as U: (n, 2k), V: (m, 2k). coefficients: (TERMS,)."""
        a, b, c, d, e = coefficients.unbind(-1)
        whole, inside = self.one.P * self.one.values, self.other.P @ (self.columns * self.one.values)
        left = [a * whole + b * inside + e * self.one.P * self.one.flat, c * whole + d * inside]
        return torch.cat(left, 1), torch.cat([self.one.Q, self.other.Q @ self.rows], 1)


class Merger(nn.Module):
    """Coefficients of the terms from the invariants of a module and their mean over all modules; at first those of the
    sum. modules: their names, in order, and shapes (n, m); about: where it comes from.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, modules: dict[str, tuple[int, int]], about: dict[str, Any] | None = None, width: int = 16):
        super().__init__()
        self.modules_of, self.about, self.width = dict(modules), dict(about or {}), width
        self.register_buffer("centre", torch.zeros(len(modules), INVARIANTS))
        self.register_buffer("spread", torch.ones(INVARIANTS))
        last = nn.Linear(width, TERMS)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.eye(TERMS)[0]
        self.net = nn.Sequential(nn.Linear(2 * INVARIANTS, width), nn.Tanh(), last)
        self.own = nn.Parameter(torch.zeros(len(modules), TERMS))
        self.double()

    def settle(self, invariants: Tensor) -> None:
        """Brings what is read to mean 0 in each module and deviation 1 over all, by pairs: (N, modules, INVARIANTS)."""
        centre = invariants.mean(0)
        self.centre.copy_(centre)
        self.spread.copy_((invariants - centre).square().mean((0, 1)).sqrt().clamp_min(1e-3))

    def forward(self, invariants: Tensor) -> Tensor:
        """(…, modules, INVARIANTS) → (…, modules, TERMS)."""
        read = (invariants - self.centre) / self.spread
        read = read.clamp(-5, 5)
        return self.net(torch.cat([read, read.mean(-2, keepdim=True).expand_as(read)], -1)) + self.own

    def merged(self, updates: Sequence[Sequence[Update]], weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """For each module U: (n, K), V: (m, K) of the merge of k ≥ 2 LoRAs: each meets every other, which is averaged,
        and what comes of it is multiplied by its weight. updates: of each LoRA, its modules.
        """
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.modules_of]
        for i, mine in enumerate(updates):
            for j, others in enumerate(updates):
                if i == j:
                    continue
                meetings = [Meeting(*pair) for pair in zip(mine, others, strict=True)]
                coefficients = self(torch.stack([meeting.invariants for meeting in meetings]))
                share = weights[i] / (len(updates) - 1)
                for part, meeting, row in zip(parts, meetings, share * coefficients, strict=True):
                    part.append(meeting.factors(row))
        return [(torch.cat([U for U, _ in part], 1), torch.cat([V for _, V in part], 1)) for part in parts]

    def save(self, path: Path) -> None:
        """Whole or not at all, as JSON with five digits. Raises CheckpointError."""
        numbers = {name: _rounded(tensor) for name, tensor in self.state_dict().items()}
        text = json.dumps({"about": self.about, "modules": self.modules_of, "width": self.width, "numbers": numbers})
        try:
            replace_file(path, lambda new: new.write_text(text + "\n"))
        except OSError as error:
            raise CheckpointError(f"{path}: the merger cannot be written ({error}).") from error

    @classmethod
    def load(cls, path: Path) -> Merger:
        """Raises CheckpointError when the file is no merger."""
        try:
            held = json.loads(path.read_text())
            shapes = {str(name): (int(n), int(m)) for name, (n, m) in held["modules"].items()}
            with MAKING:
                merger = cls(shapes, held["about"], held["width"])
            numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in held["numbers"].items()}
            merger.load_state_dict(numbers)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read as a merger ({error}). Train one: `python -m lol_core.experiments.merger`."
            ) from error
        return merger.eval().requires_grad_(False)


def _rounded(tensor: Tensor) -> Any:
    return [_rounded(part) for part in tensor] if tensor.ndim else float(f"{tensor.item():.5g}")
