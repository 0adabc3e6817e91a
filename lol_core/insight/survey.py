"""What the weights of every LoRA of a collection say in few numbers, read once and kept beside the index: norms,
effective ranks, a sketch of ΔW.

With it come the health of a file and the LoRAs that are the same function.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.collections.entry import Entry
from lol_core.collections.source import Source
from lol_core.core.geometry import effective_rank, inner_product, same_function, spectrum
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError
from lol_core.insight.neighbours import BLOCK, within
from lol_core.learning.executor import Executor, Lost, Serial, executor

SKETCH = 48
"""Numbers of a sketch."""
SAME = 1e-2
"""‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖ up to which two LoRAs count as the same function: bfloat16 rounds by about 4e-3."""
NOISE = 1e-6
"""Share of the largest singular value below which a Gram matrix knows nothing."""
CHUNK = 8
"""LoRAs that are sent to another process at a time."""
LOW_RANK_USE = 0.25
"""A LoRA whose modules use on average less than this share of their rank counts as rank-deficient."""


@dataclass(frozen=True)
class Survey:
    """One LoRA's weights. norms: ‖ΔW‖ of each module; effective_ranks: of each module; sketch: (SKETCH,); range: the
    least and the largest number of its factors, as they are stored, (2,); problem: why it could not be read, else None.

    The order of modules is that of the entry's layers.
    """

    norms: np.ndarray
    effective_ranks: np.ndarray
    sketch: np.ndarray
    range: np.ndarray
    problem: str | None = None

    @property
    def norm(self) -> float:
        """‖ΔW‖ over all modules."""
        return float(np.linalg.norm(self.norms))


@lru_cache(maxsize=64)
def _projection(side: str, length: int, size: int) -> Tensor:
    """A fixed Gaussian matrix for one side of all modules of one length: (length, size)."""
    seed = int.from_bytes(hashlib.sha256(f"{side} {length}".encode()).digest()[:6])
    return torch.randn(length, size, generator=torch.Generator().manual_seed(seed)).double()


@lru_cache(maxsize=100_000)
def _signs(module: str, size: int) -> np.ndarray:
    """±1 for each number of a sketch, drawn from a module's name."""
    bits = np.frombuffer(hashlib.shake_128(module.encode()).digest(size), np.uint8)
    return np.where(bits % 2, 1.0, -1.0)


@dataclass(frozen=True)
class _Stack:
    """Modules of one shape and rank: U (L, n, r) and V (L, m, r) in float64, scales folded in; indices: their places in
    the LoRA.
    """

    indices: list[int]
    names: list[str]
    U: Tensor
    V: Tensor


def _stacks(lora: LoRA) -> Iterator[_Stack]:
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for i, layer in enumerate(lora.layers):
        shapes.setdefault((layer.n, layer.m, layer.rank), []).append(i)
    for indices in shapes.values():
        layers = [lora.layers[i] for i in indices]
        scales = torch.tensor([layer.scale for layer in layers], dtype=torch.float64)
        U, V = (torch.stack([getattr(y, side) for y in layers]).double() for side in ("U", "V"))
        yield _Stack(indices, [layer.name for layer in layers], U * scales[:, None, None], V)


def _sketch(stack: _Stack, size: int) -> np.ndarray:
    _, n, _ = stack.U.shape
    left = stack.U.mT @ _projection("left", n, size)
    right = stack.V.mT @ _projection("right", stack.V.shape[1], size)
    signs = np.stack([_signs(name, size) for name in stack.names])
    return np.asarray(((left * right).sum(1).numpy() * signs).sum(0))


def sketch(lora: LoRA, size: int = SKETCH) -> np.ndarray:
    """A random linear image of all ΔW, (size,): s_j = Σ_modules ε_j gᵀ ΔW h with fixed Gaussian g and h for each length
    of a side, and signs ε drawn from the module's name.

    It depends on ΔW alone, not on the factors; the mean of s_j² is ‖ΔW‖² in expectation, and as the map is linear
    ‖s_a − s_b‖ / √size estimates ‖ΔW_a − ΔW_b‖, with a relative standard error of about √(3 / size) at most
    (for one module of rank one; √(1 / 2 size) where many singular values share the norm).
    """
    return np.sum([np.zeros(size), *(_sketch(stack, size) for stack in _stacks(lora))], axis=0)


def _spectra(stack: _Stack) -> Tensor:
    """Singular values of every module of a stack, (L, r), from the r × r Gram matrices of its factors in float64:
    σ² are the eigenvalues of LᵀG_V L with G_U = L Lᵀ. Values below NOISE of the largest are rounding, and zero here.
    """
    G_U, G_V = (factor.mT @ factor for factor in (stack.U, stack.V))
    size = torch.diagonal(G_U, dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
    eye = torch.eye(G_U.shape[-1], dtype=torch.float64)
    L, failed = torch.linalg.cholesky_ex(G_U + 1e-14 * size[:, None, None] * eye)
    if failed.any():  # beyond what the small shift mends: take the root from the eigenvalues
        values, vectors = torch.linalg.eigh(G_U)
        L = torch.where((failed > 0)[:, None, None], vectors * values.clamp(min=0).sqrt()[:, None, :], L)
    values = torch.linalg.eigvalsh(L.mT @ G_V @ L).clamp(min=0).sqrt()
    alive = (G_U.flatten(1).any(1) & G_V.flatten(1).any(1))[:, None]
    return values * (alive & (values > NOISE * values.amax(-1, keepdim=True)))


def _effective_ranks(values: Tensor) -> Tensor:
    """`geometry.effective_rank` of every row: (L, r) → (L,)."""
    total = values.sum(-1, keepdim=True)
    share = torch.where(total > 0, values / total, torch.zeros_like(values))
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[:, 0] > 0, entropy.exp(), torch.zeros_like(entropy))


def survey(lora: LoRA) -> Survey:
    """Survey one LoRA, read with its weights, modules of one shape at a time. O((n + m) r (r + SKETCH)) a module."""
    norms, ranks = (np.zeros(len(lora.layers), np.float32) for _ in range(2))
    total = np.zeros(SKETCH)
    for stack in _stacks(lora):
        kronecker = [i for i in stack.indices if lora.layers[i].factor_shapes]
        values = _spectra(stack)
        norms[stack.indices], ranks[stack.indices] = values.norm(dim=-1).numpy(), _effective_ranks(values).numpy()
        for i in kronecker:  # their pair has the norm of ΔW, but not its singular values
            ranks[i] = effective_rank(spectrum(lora.layers[i]))
        total += _sketch(stack, SKETCH)
    return Survey(norms, ranks, total.astype(np.float32), _range(lora))


def _range(lora: LoRA) -> np.ndarray:
    slots = [slot for layer in lora.layers for slot in layer.parametrisation.slots.values()]
    bounds = torch.stack([torch.stack(slot.float().aminmax()) for slot in slots if slot.numel()])
    return np.array([bounds[:, 0].min(), bounds[:, 1].max()], np.float32)


class Surveys:
    """The surveys of a collection, by content, in the SQLite file of its index: what was read once is not read
    again.
    """

    def __init__(self, zoo: Source, cache: Path | None = None):
        self.zoo = zoo
        self.path = zoo.store(cache)

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=30)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS surveys_3 (digest PRIMARY KEY, norms, effective_ranks, sketch, range, problem)"
        )
        return connection

    def count(self) -> int:
        """How many surveys are kept, of present and of former files: a cheap sign of whether there are new ones."""
        connection = self._connect()
        try:
            return int(connection.execute("SELECT COUNT(*) FROM surveys_3").fetchone()[0])
        finally:
            connection.close()

    def known(self) -> dict[str, Survey]:
        """id → survey of the LoRAs read so far."""
        connection = self._connect()
        try:
            rows = {
                row[0]: row[1:]
                for row in connection.execute(
                    "SELECT digest, norms, effective_ranks, sketch, range, problem FROM surveys_3"
                )
            }
        finally:
            connection.close()
        return {e.path: _from_row(rows[e.digest]) for e in self.zoo.entries if e.digest in rows}

    def complete(
        self,
        reporter: Reporter = SILENT,
        *,
        workers: int | str = 1,
    ) -> dict[str, Survey]:
        """Read what has not been read; `workers` as `executor` takes them. When the reporter says to stop it ends with
        what it has, which is kept.
        """
        surveys = self.known()
        digests = {entry.path: entry.digest for entry in self.zoo.entries}
        missing = [id for id in digests if id not in surveys]
        runner = executor(workers)
        if len(missing) <= CHUNK:
            runner = Serial()
        connection = self._connect()
        done, saved = 0, time.monotonic()
        try:
            for chunk in _surveyed(runner, [(id, self.zoo.reader(id)) for id in missing]):
                for id, result in chunk.items():
                    if isinstance(result, Lost):  # not kept: a larger machine may read it
                        surveys[id] = _unread(result.reason)
                        continue
                    surveys[id] = result
                    connection.execute(
                        "INSERT OR REPLACE INTO surveys_3 VALUES (?, ?, ?, ?, ?, ?)", (digests[id], *_to_row(result))
                    )
                done += len(chunk)
                if time.monotonic() - saved > 1:  # not after each, which is slow, and not rarely: others wait meanwhile
                    connection.commit()
                    saved = time.monotonic()
                reporter.count("Reading weights: LoRA", done, len(missing))
                if reporter.stopping:
                    break
            connection.commit()
        finally:
            connection.close()
        return surveys


Reader = tuple[str, Callable[[], LoRA]]


def _surveyed(runner: Executor, readers: list[Reader], size: int = CHUNK) -> Iterator[dict[str, Survey | Lost]]:
    """id → survey, some at a time; those that a worker died over go again one by one."""
    size = 1 if isinstance(runner, Serial) else size
    chunks = [readers[i : i + size] for i in range(0, len(readers), size)]
    again: list[Reader] = []
    with closing(runner.map(_survey_all, chunks)) as results:
        for chunk, result in results:
            if not isinstance(result, Lost):
                yield {**result}
            elif len(chunk) > 1:
                again += chunk
            else:
                yield {chunk[0][0]: result}
    if again:
        yield from _surveyed(runner, again, 1)


def _survey_all(readers: list[Reader]) -> dict[str, Survey]:
    """id → survey; what cannot be read gets its reason in place of numbers."""
    surveys = {}
    for id, reader in readers:
        try:
            surveys[id] = survey(reader())
        except LoRAFormatError as error:
            surveys[id] = _unread(str(error))
    return surveys


def _unread(reason: str) -> Survey:
    nothing = np.zeros(0, np.float32)
    return Survey(nothing, nothing, nothing, nothing, reason)


def _to_row(survey: Survey) -> tuple[bytes | str | None, ...]:
    arrays = (survey.norms, survey.effective_ranks, survey.sketch, survey.range)
    return *(array.astype(np.float32).tobytes() for array in arrays), survey.problem


def _from_row(row: tuple[Any, ...]) -> Survey:
    *arrays, problem = row
    norms, effective_ranks, drawn, bounds = (np.frombuffer(blob, np.float32) for blob in arrays)
    return Survey(norms, effective_ranks, drawn, bounds, problem)


class Ailment(StrEnum):
    """What can be wrong or odd about a LoRA, in a word or two."""

    UNREADABLE = "unreadable weights"
    UNTRAINED = "never trained"
    PARTLY_ZERO = "partly zero"
    RANK_DEFICIENT = "rank-deficient"
    CONTRADICTION = "claims another rank"


@dataclass(frozen=True)
class Diagnosis:
    """One thing that is wrong or odd about a LoRA. reason: a sentence."""

    ailment: Ailment
    reason: str


def never_trained(lora: LoRA) -> bool:
    """Whether ΔW is zero in every module, because a factor is, as it is before the first step of training."""
    return not any(bool(layer.U.any()) and bool(layer.V.any()) for layer in lora.layers)


def health(entry: Entry, taken: Survey | None) -> list[Diagnosis]:
    """What is wrong or odd about a LoRA, from its header and, where it has been read, its weights."""
    marks = contradictions(entry)
    if taken is None:
        return marks
    if taken.problem is not None:
        return [Diagnosis(Ailment.UNREADABLE, taken.problem.split(": ", 1)[-1]), *marks]
    zero = taken.norms == 0
    if zero.all():
        return [Diagnosis(Ailment.UNTRAINED, "ΔW is zero in every module: it was never trained."), *marks]
    if zero.any():
        reason = f"ΔW is zero in {zero.sum()} of {len(zero)} modules: half-trained."
        marks.append(Diagnosis(Ailment.PARTLY_ZERO, reason))
    ranks = np.array([module.rank for module in entry.headers])
    large = ~zero & (ranks >= 4)
    if large.any() and (use := float((taken.effective_ranks[large] / ranks[large]).mean())) < LOW_RANK_USE:
        reason = f"Its modules use {use:.0%} of their rank on average (effective rank)."
        marks.append(Diagnosis(Ailment.RANK_DEFICIENT, reason))
    return marks


def contradictions(entry: Entry) -> list[Diagnosis]:
    """Where the header's claims and the shapes of the tensors disagree."""
    claims, marks = entry.metadata, list[Diagnosis]()
    claimed_rank = claims.get("ss_network_dim", claims.get("r"))
    try:
        rank = int(float(claimed_rank)) if claimed_rank is not None else None
    except (TypeError, ValueError):
        rank = None
    if rank is not None and entry.ranks and rank not in entry.ranks and not claims.get("rank_pattern"):
        reason = f"The header claims rank {rank}; the factors have {', '.join(map(str, entry.ranks))}."
        marks.append(Diagnosis(Ailment.CONTRADICTION, reason))
    return marks


def nearest(zoo: Source, surveys: dict[str, Survey], id: str, count: int = 8, candidates: int = 40) -> pd.DataFrame:
    """The LoRAs whose updates are nearest to one: index ids; columns distance, ‖ΔW − ΔW′‖ / ‖ΔW‖, and cosine,
    ascending by distance.

    Sketches choose the candidates; the numbers are exact, over the modules of both (a module that only one has
    counts as zero in the other).
    """
    own = surveys[id]
    others = [
        other
        for other, taken in surveys.items()
        if other != id and taken.problem is None and taken.norm > 0 and other in zoo.by_id
    ]
    if own.problem is not None or own.norm == 0 or not others:
        return pd.DataFrame(columns=["distance", "cosine"])
    gaps = np.linalg.norm(np.stack([surveys[other].sketch for other in others]) - own.sketch, axis=1)
    lora = zoo.load(id)
    rows = {}
    for i in np.argsort(gaps)[:candidates]:
        other = zoo.load(others[i])
        product = 0.0
        for layer in lora.layers:
            if layer.name in other.names and (other[layer.name].n, other[layer.name].m) == (layer.n, layer.m):
                product += inner_product(layer, other[layer.name])
        a, b = own.norm, surveys[others[i]].norm
        rows[others[i]] = (max(a**2 + b**2 - 2 * product, 0.0) ** 0.5 / a, product / (a * b))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["distance", "cosine"]).nsmallest(count, "distance")


def layer_map(values: pd.Series) -> pd.DataFrame:
    """Values of modules, by name, as a map of the base model: a row for each kind of projection, in the file's order, a
    column for each block, in order of their names with numbers as numbers (0, 1, 2, 10).

    The block is the name up to its last number that is followed by something (encoder.layer.3), the projection is
    the rest (attention.self.key); the numbers of diffusers' to_out.0 and ff.net.2 belong to the projection.
    """
    parts = [re.match(r"(?:(.*(?<!net)(?<!to_out)[._]\d+)[._])?(.+)$", str(name)) for name in values.index]
    blocks = [(part[1] or "") if part else "" for part in parts]
    rows = [part[2] if part else str(name) for part, name in zip(parts, values.index, strict=True)]
    table = pd.DataFrame({"row": rows, "block": blocks, "value": values.to_numpy()})
    table = table.pivot_table("value", "row", "block", "sum", sort=False, observed=True)
    return table[sorted(table.columns, key=lambda block: _natural(str(block)))]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in a name as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def duplicates(
    zoo: Source,
    surveys: dict[str, Survey],
    tolerance: float = SAME,
    reporter: Reporter = SILENT,
) -> pd.DataFrame:
    """LoRAs that are the same function, whatever their file, factors, dtype or padded rank: a row for each, with
    columns group, lora, identical.

    Equal content is the same function; among different contents sketches find the candidates, and
    `geometry.same_function` decides. identical: whether the file's content is that of another member of its group.
    When the reporter says to stop, the pairs found so far are what is returned.
    """
    ids = [id for id, taken in surveys.items() if taken.problem is None and taken.norm > 0 and id in zoo.by_id]
    if len(ids) < 2:
        return pd.DataFrame(columns=["group", "lora", "identical"])
    table = pd.DataFrame({"lora": ids, "digest": [zoo.by_id[id].digest for id in ids]})
    contents = table.drop_duplicates("digest", ignore_index=True)
    sketches = np.stack([surveys[id].sketch for id in contents["lora"]])
    directions = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
    root = np.arange(len(contents))
    for i, (id, near) in enumerate(zip(contents["lora"], within(directions, 4 * tolerance), strict=True)):
        if reporter.stopping:
            break
        if i % BLOCK == 0:
            reporter.count("Comparing updates: LoRA", i, len(contents))
        for j in np.unique(root[near[near < i]]):
            if same_function(zoo.load(contents["lora"][j]), zoo.load(id), tolerance):
                root[i] = j
                break
    table["group"] = table["digest"].map(dict(zip(contents["digest"], root, strict=True)))
    table = table[table.groupby("group")["lora"].transform("size") > 1].copy()
    table["identical"] = table.duplicated(["group", "digest"], keep=False)
    table["group"] = table["group"].rank(method="dense").astype(int)
    return table.sort_values(["group", "lora"])[["group", "lora", "identical"]].reset_index(drop=True)


def tag_counts(metadata: Mapping[str, Any]) -> pd.Series:
    """How often each tag stands in the captions a kohya LoRA was trained on (`ss_tag_frequency`, summed over its
    folders), the most frequent first.
    """
    frequencies = metadata.get("ss_tag_frequency")
    try:
        folders = json.loads(frequencies) if isinstance(frequencies, str) else frequencies
    except ValueError:
        folders = None
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return pd.Series(counts, dtype=int, name="count").sort_values(ascending=False, kind="stable")
