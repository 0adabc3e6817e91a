"""`python -m benchmarks.many`: what is found among 100,000 LoRAs whose every copy is known, and how long that takes;
and a map of them.

The LoRAs are synthetic, of one small module each, and made when they are read. Some come several times: regauged,
rounded to bfloat16, padded to a higher rank, with both factors negated, with their scale moved into a factor. Others
only look alike: negated, or a tenth larger.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from torch import Tensor

from lol_core.collections.source import Source
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.insight.duplicates import duplicates
from lol_core.insight.embedding import Space
from lol_core.insight.picture import graph_of, project
from lol_core.insight.survey import survey

N, M, RANK = 24, 16, 2
REPEATED = 0.05
"""Share of the LoRAs that come again, once in each of the ways below."""

Factors = tuple[Tensor, Tensor, float]


def regauged(U: Tensor, V: Tensor, scale: float) -> Factors:
    R = GL.sample(RANK, condition=10.0, count=(), generator=torch.Generator().manual_seed(0)).float()
    return U @ R, torch.linalg.solve(R, V.mT).mT, scale


def padded(U: Tensor, V: Tensor, scale: float) -> Factors:
    return torch.nn.functional.pad(U, (0, 2)), torch.nn.functional.pad(V, (0, 2), value=0.3), scale


COPIES: Mapping[str, Callable[[Tensor, Tensor, float], Factors]] = {
    "regauged": regauged,
    "rounded": lambda U, V, scale: (U.bfloat16(), V.bfloat16(), scale),
    "padded": padded,
    "negated twice": lambda U, V, scale: (-U, -V, scale),
    "scale moved": lambda U, V, scale: (U * scale, V, 1.0),
}
OTHERS: Mapping[str, Callable[[Tensor, Tensor, float], Factors]] = {
    "negated": lambda U, V, scale: (-U, V, scale),
    "a tenth larger": lambda U, V, scale: (U, V, 1.1 * scale),
}
WAYS = {**COPIES, **OTHERS}


@dataclass(frozen=True)
class Generated:
    """A source of `count` LoRAs, as far as duplicates need one. Ids: "number way"."""

    count: int

    @cached_property
    def ids(self) -> list[str]:
        repeated = int(self.count * REPEATED / len(WAYS))
        alone = self.count - repeated * len(WAYS)
        return [f"{i} original" for i in range(alone)] + [f"{i} {way}" for i in range(repeated) for way in WAYS]

    @cached_property
    def by_id(self) -> dict[str, SimpleNamespace]:
        digests = {id: hashlib.sha256(id.encode()).hexdigest() for id in self.ids}
        return {id: SimpleNamespace(digest=digest, content=digest) for id, digest in digests.items()}

    def load(self, id: str) -> LoRA:
        number, way = id.split(" ", 1)
        generator = torch.Generator().manual_seed(int(number))
        factors = torch.randn(N, RANK, generator=generator), torch.randn(M, RANK, generator=generator), 0.5
        U, V, scale = WAYS[way](*factors) if way in WAYS else factors
        return LoRA((LoRALayer.pair("module", U, V, scale=scale),))

    @property
    def same(self) -> set[frozenset[str]]:
        """Every pair that is one function."""
        alike: dict[str, list[str]] = {}
        for id in self.ids:
            number, way = id.split(" ", 1)
            if way not in OTHERS:
                alike.setdefault(number, []).append(id)
        return {frozenset(pair) for ids in alike.values() for pair in combinations(ids, 2)}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def report(count: int) -> dict[str, Any]:
    source = Generated(count)
    surveyed, surveys = seconds(lambda: {id: survey(source.load(id)) for id in source.ids})
    found, table = seconds(lambda: duplicates(cast(Source, source), surveys))
    pairs = {frozenset(pair) for _, group in table.groupby("group") for pair in combinations(group["lora"], 2)}
    right = len(pairs & source.same)
    space = Space("sketches", tuple(source.ids), np.stack([surveys[id].sketch for id in source.ids]))
    drawn, _ = seconds(lambda: project(space))
    looked_up, graph = seconds(lambda: graph_of(space))
    by_umap, _ = seconds(lambda: project(space, "UMAP", graph=graph))
    return {
        "LoRAs among which copies are known": count,
        "pairs that are the same function": len(source.same),
        "precision": right / max(1, len(pairs)),
        "recall": right / len(source.same),
        "surveyed (s)": surveyed,
        "duplicates found (s)": found,
        "map by PCA of sketches (s)": drawn,
        "neighbours in sketches (s)": looked_up,
        "map of sketches by UMAP, neighbours known (s)": by_umap,
        "most memory (GB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main(
    count: int = 100_000, out: Annotated[Path | None, typer.Option(help="A JSON file for the report.")] = None
) -> None:
    facts = report(count)
    for what, value in facts.items():
        print(f"{what}: {value:,.3g}")
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
