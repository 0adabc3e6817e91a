"""What a model keeps of the LoRAs it was trained on, to tell whether another is like them. Where it is not, the model's
prediction is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

NEIGHBOURS = 5
FEWEST = 2 * NEIGHBOURS
"""LoRAs of the training below which nobody knows what is usual; held out below which the training's own must do."""
MOST, MOST_NUMBERS = 2000, 2**22
"""LoRAs of the training that are kept, drawn at random, and numbers that they may take."""
OUTSIDE = 0.99
"""A LoRA is outside when it is farther from the training LoRAs than this share of those held out from the training."""
UNLIKE = "unlike the LoRAs it was trained on: take it as a guess"
ROUNDING = 1e-4
"""Share by which distances of one LoRA, read twice, may differ."""
SAME = 1e-5
"""Share of its mean by which a column must differ among the training LoRAs to be divided by its deviation."""


class Seen(NamedTuple):
    """LoRAs in two views: a model's own latent vectors (B, width), and log norms of the updates (B, L), which a latent
    may hide.
    """

    latent: Tensor
    norms: Tensor

    @classmethod
    def joined(cls, some: Sequence[Seen]) -> Seen:
        return cls(*map(torch.cat, zip(*some, strict=True))) if some else cls(torch.zeros(0, 0), torch.zeros(0, 0))


@dataclass(frozen=True)
class View:
    """The training LoRAs as points, and how far others lie from them.

    mean, unit: what is subtracted and divided by, (d,): the deviation of each column; points: (N, d) in these units,
    in float16, whose rounding is far below distances; distances: (K,), ascending, each the mean of those to the five
    nearest points.
    """

    mean: Tensor
    unit: Tensor
    points: Tensor
    distances: Tensor

    @classmethod
    def of(cls, trained: Tensor, held_out: Tensor) -> Self:
        """held_out: with too few rows, distances are those of the training LoRAs from each other."""
        most = max(FEWEST, min(MOST, MOST_NUMBERS // max(1, trained.shape[1])))
        some, others = _some(trained, most), _some(held_out, most)
        std, mean = torch.std_mean(some.double(), 0, correction=0)
        unit = torch.where(std > SAME * mean.abs(), std, torch.ones_like(std))
        view = cls(mean.float(), unit.float(), ((some - mean) / unit).half(), torch.zeros(0))
        far = view._distance(others) if len(others) >= FEWEST else view._distance(some, leave_out=1)
        return replace(view, distances=far.sort().values)

    def _distance(self, values: Tensor, leave_out: int = 0) -> Tensor:
        """Of each row: (B,). leave_out: of the nearest points, such as the row itself."""
        far = torch.cdist((values.double() - self.mean) / self.unit, self.points.double())
        return far.topk(NEIGHBOURS + leave_out, largest=False).values[:, leave_out:].mean(1).float()

    def share(self, values: Tensor) -> np.ndarray:
        """Of the known distances, those that are shorter than each row's, by more than rounding: (B,)."""
        known = self.distances.numpy() * (1 + ROUNDING)
        return np.searchsorted(known, self._distance(values).numpy()) / len(known)


@dataclass(frozen=True)
class Known:
    """The training LoRAs of a model in two views. held_out: whether their distances are of LoRAs that the training held
    out. The training LoRAs' own are too short, as far as a model moves apart the latents that it learns from.
    """

    latent: View
    norms: View
    held_out: bool

    @classmethod
    def of(cls, trained: Seen, held_out: Seen) -> Self | None:
        """None with fewer training LoRAs than tell what is usual."""
        if len(trained.latent) < FEWEST:
            return None
        latent, norms = (View.of(mine, others) for mine, others in zip(trained, held_out, strict=True))
        return cls(latent, norms, len(held_out.latent) >= FEWEST)

    @property
    def others(self) -> str:
        """Whose distances it measures by, in words."""
        return "those held out" if self.held_out else "these from each other"

    def shares(self, seen: Seen) -> np.ndarray:
        """For each LoRA, in either view, the share of those held out that are nearer to their five neighbours among the
        training LoRAs than it is to its own: (B, 2). A training LoRA finds itself among its neighbours, so it looks
        more usual than it is.
        """
        return np.stack([self.latent.share(seen.latent), self.norms.share(seen.norms)], 1)

    def marks(self, shares: np.ndarray, ids: Sequence[str]) -> pd.DataFrame:
        """Of `shares` a table: columns "latent" and "norms"; "outside", whether one of them exceeds 0.99; "remark",
        that in words, as a sentence's end. Of LoRAs like the training's about 2 % are outside, where n < 100 were held
        out up to 2 in n + 1.
        """
        table = pd.DataFrame(shares, index=list(ids), columns=["latent", "norms"])
        table["outside"] = (table > OUTSIDE).any(axis=1)
        table["remark"] = [
            f"{UNLIKE if outside else 'like those it knows'} (farther from them than {latent:.0%} of {self.others} in"
            f" its latent, {norms:.0%} in norms)"
            for latent, norms, outside in table.itertuples(index=False)
        ]
        return table

    def tensors(self) -> dict[str, Tensor]:
        """For a file; `from_tensors` takes them."""
        views = {"latent": self.latent, "norms": self.norms}
        return {f"{name}.{part}": tensor for name, view in views.items() for part, tensor in vars(view).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], held_out: bool) -> Self:
        """Raises KeyError for one that is missing."""
        latent, norms = (
            View(**{part.name: tensors[f"{name}.{part.name}"] for part in fields(View)}) for name in ("latent", "norms")
        )
        return cls(latent, norms, held_out)


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, drawn at random, the same ones each time; in float32."""
    if len(rows) <= most:
        return rows.float().contiguous()
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].sort().values].float()
