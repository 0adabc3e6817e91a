"""A collection as points: the space its LoRAs lie in, and their neighbours and clusters there. A picture of it (see
`picture`) only shows them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from lol_core.collections.entry import Entry
from lol_core.collections.kept_rows import KeptRows
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.batch import Batch, WeightSpec, shared_spec, stack
from lol_core.core.geometry import spectrum
from lol_core.core.header import ByIdentity, ModuleHeader
from lol_core.core.lora import LoRA
from lol_core.core.naming import common_names
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import LoRAFormatError, TaskError
from lol_core.insight.survey import SKETCH
from lol_core.insight.surveys import Surveys
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.models.gram import gram

Kind = Literal["updates", "directions", "spectra", "latent", "sketches"]
SKETCHED = "sketches of updates"
LANDMARKS, FEWEST_LANDMARKS = 1500, 50
"""Up to so many LoRAs of a collection all products with all are computed; with more, the products of all with so many
of them.
"""
LANDMARK_NUMBERS = 250_000_000
"""Numbers that the factors of the landmarks may take together: a gigabyte in float32."""
READ_AT_ONCE = 64
MANY, FEW_DIRECTIONS = 3000, 30
"""More LoRAs than this are clustered in fewer dimensions, where that takes seconds."""
SAMPLED = 10_000
"""LoRAs among which clusters are looked for at most: that takes time with their square."""


@dataclass(frozen=True)
class Space:
    """LoRAs as vectors. ids: (N,); vectors: (N, d), whose Euclidean distances are the distances of the space; title:
    what they are.

    share: how much of the LoRAs' squared norm the vectors hold, 1 where they are exact. Where it is less, distances are
    too small.
    """

    title: str
    ids: tuple[str, ...]
    vectors: np.ndarray
    share: float = 1.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.vectors):
            raise TaskError(f"{len(self.ids)} names but {len(self.vectors)} vectors.")

    def neighbours(self, id: str, count: int = 10) -> pd.Series:
        """The LoRAs nearest to one, itself left out: id → distance, ascending."""
        own = self.ids.index(id)
        gaps = self.vectors - self.vectors[own]
        squares = np.einsum("nd,nd->n", gaps, gaps)
        last = min(count, len(squares) - 1)
        near = np.flatnonzero(squares <= np.partition(squares, last)[last])  # so that few are sorted
        near = near[np.argsort(squares[near], kind="stable")]
        near = near[near != own][:count]
        return pd.Series(np.sqrt(squares[near]), index=[self.ids[place] for place in near])

    def clusters(self, smallest: int = 5) -> pd.Series:
        """A cluster number for each LoRA by HDBSCAN, −1 for those in none; of more than `MANY` LoRAs by their first
        `FEW_DIRECTIONS` principal components. Of more than `SAMPLED` those of a sample, and every other LoRA has the
        number of the sampled one that is nearest.
        """
        from sklearn.cluster import HDBSCAN  # takes a second to import
        from sklearn.decomposition import PCA
        from sklearn.neighbors import NearestNeighbors

        if len(self.ids) < max(2, smallest):
            return pd.Series(-1, index=list(self.ids))
        vectors = self.vectors
        if len(self.ids) > MANY and vectors.shape[1] > FEW_DIRECTIONS:
            vectors = PCA(FEW_DIRECTIONS, random_state=0).fit_transform(vectors)
        several = len(self.ids) > SAMPLED
        sample = np.random.default_rng(0).choice(vectors, SAMPLED, replace=False) if several else vectors
        found = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(sample)
        if several:
            nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(sample)
            found = found[nearest.kneighbors(vectors, return_distance=False)[:, 0]]
        return pd.Series(found, index=list(self.ids))


def from_gram(title: str, ids: Sequence[str], products: np.ndarray, directions: bool = False) -> Space:
    """The space in which inner products are those of the updates: vectors with X Xᵀ = `products`, by its eigenvectors,
    so that distances are ‖ΔW_a − ΔW_b‖.

    directions: every ΔW is divided by its norm first, so that only its direction counts.
    """
    if directions:
        size = np.sqrt(np.clip(np.diag(products), 1e-30, None))
        products = products / size / size[:, None]
    values, basis = np.linalg.eigh(products)
    kept = values > max(values.max(initial=0.0), 0) * 1e-10
    order = np.argsort(-values[kept])
    return Space(title, tuple(ids), (basis[:, kept] * np.sqrt(values[kept]))[:, order])


def self_products(batch: Batch) -> np.ndarray:
    """‖ΔW‖² over all modules, from the factors: (B,) float64."""
    total = torch.zeros(len(batch), dtype=torch.float64)
    for U, V in zip(batch.U, batch.V, strict=True):
        U, V = U.double(), V.double()
        total += ((U.mT @ U) * (V.mT @ V)).sum((1, 2, 3))
    return total.numpy()


def nystroem(among: np.ndarray) -> np.ndarray:
    """From the inner products (K, K) of K landmarks the matrix (K, d) that takes products with them, (N, K), to vectors
    X (N, d): X Xᵀ is exact among the landmarks, others are projected onto their span.

    C. Williams and M. Seeger, "Using the Nyström method to speed up kernel machines", 2001.
    """
    values, basis = np.linalg.eigh(among)
    kept = values > values.max(initial=0.0) * 1e-8
    return (basis[:, kept] / np.sqrt(values[kept]))[:, ::-1]


def padded_spectra(spectra: Sequence[Sequence[np.ndarray]], spec: WeightSpec) -> np.ndarray:
    """log(1 + σ) of every module's singular values, padded with zeros to its largest rank: (B, Σ rank)."""
    rows = []
    for values in spectra:
        parts = [np.log1p(sigma[: module.rank]) for sigma, module in zip(values, spec.modules, strict=True)]
        rows.append(
            np.concatenate(
                [np.pad(part, (0, module.rank - len(part))) for part, module in zip(parts, spec.modules, strict=True)]
            )
        )
    return np.stack(rows)


def families(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The ids of LoRAs that adapt the same modules of the same shapes, with DoRA magnitudes or without, the largest
    family first: those that have distances to each other.
    """
    groups: dict[frozenset[Hashable], list[str]] = {}
    known: dict[ByIdentity[Sequence[ModuleHeader]], frozenset[Hashable]] = {}
    for entry in entries:
        key = ByIdentity[Sequence[ModuleHeader]](entry.headers)
        if key not in known:
            names = common_names(y.name for y in entry.headers)
            known[key] = frozenset(
                (name, y.n, y.m, y.magnitude, y.magnitude_axis, y.factor_shapes)
                for name, y in zip(names, entry.headers, strict=True)
            )
        groups.setdefault(known[key], []).append(entry.path)
    return sorted((tuple(ids) for ids in groups.values()), key=len, reverse=True)


def space_of(
    zoo: Source,
    ids: Sequence[str],
    kind: Kind,
    *,
    checkpoint: Checkpoint | None = None,
    reporter: Reporter = SILENT,
    landmarks: int = LANDMARKS,
    store: Store | None = None,
) -> Space | None:
    """Read LoRAs, a block at a time, and place them: by their updates, the directions of these, their singular values,
    or a checkpoint's latent vectors. By sketches of their updates nothing is read that has been surveyed: distances are
    estimates of ‖ΔW_a − ΔW_b‖ then (see `survey.sketch`).

    Updates and directions of more than `landmarks` LoRAs are placed by their products with that many of them (Nyström's
    method; fewer where they would take over `LANDMARK_NUMBERS` numbers): see `Space.share`. Files that cannot be read,
    or do not fit the checkpoint, are left out; None when it was stopped on the way. store: where latent vectors are
    kept. Raises TaskError when none can be read, or there is no checkpoint for a latent.
    """
    if kind not in get_args(Kind):
        raise TaskError(f"There is no space {kind!r}. Choose one of {', '.join(get_args(Kind))}.")
    if kind == "latent" and checkpoint is None:
        raise TaskError("A latent space needs a checkpoint.")
    ids = [id for id in ids if checkpoint is None or not checkpoint.spec.misfits(zoo.by_id[id])]
    if not ids:
        raise TaskError("There is no LoRA to place." if checkpoint is None else "None of these LoRAs fits the model.")
    spec = shared_spec(zoo.by_id[id] for id in ids)
    if kind in ("updates", "directions"):
        space = _by_products(zoo, ids, spec, kind == "directions", reporter=reporter, landmarks=landmarks)
    elif kind == "sketches":
        surveys = Surveys(zoo).complete(reporter)
        kept = [id for id in ids if id in surveys and surveys[id].problem is None]
        sketches = [surveys[id].sketch for id in kept]
        space = Space(SKETCHED, tuple(kept), np.stack(sketches) / np.sqrt(float(SKETCH))) if kept else None
    elif checkpoint is not None and kind == "latent":
        latents = KeptRows(zoo, store, Kept.LATENTS, checkpoint.identity() if store else "", dtype=torch.float32)
        missing = latents.find(ids)
        for names, loras in _blocks(zoo, missing, reporter):
            latents.add(names, checkpoint.outputs(loras, embed=True).cpu(), ids=missing)
        kept = [id for id in ids if id in latents.rows]
        vectors = [latents.rows[id] for id in kept]
        space = Space(f"latent of {checkpoint.title}", tuple(kept), np.stack(vectors)) if kept else None
    else:
        kept = []
        parts: list[np.ndarray] = []
        for names, loras in _blocks(zoo, ids, reporter):
            kept += names
            values = [[spectrum(lora[module.name]).numpy() for module in spec.modules] for lora in loras]
            parts.append(padded_spectra(values, spec))
        space = Space("singular values", tuple(kept), np.concatenate(parts)) if kept else None
    if reporter.stopping:
        return None
    if space is None:
        raise TaskError("None of these LoRAs can be read.")
    return space


def _blocks(zoo: Source, ids: Sequence[str], reporter: Reporter) -> Iterator[tuple[list[str], list[LoRA]]]:
    """Those that can be read, a few at a time, until it is stopped."""
    for first in range(0, len(ids), READ_AT_ONCE):
        names, loras = [], []
        for done, id in enumerate(ids[first : first + READ_AT_ONCE], first + 1):
            if reporter.stopping:
                return
            reporter.count("Reading weights:", done, len(ids))
            with suppress(LoRAFormatError):
                loras.append(zoo.load(id))
                names.append(id)
        if names:
            yield names, loras


def _by_products(
    zoo: Source, ids: Sequence[str], spec: WeightSpec, directions: bool, *, reporter: Reporter, landmarks: int
) -> Space | None:
    """The space of updates or of their directions; by the products with some where there are many. None when none can
    be read.
    """
    title = "directions" if directions else "updates"
    size = sum(module.rank * (module.n + module.m) for module in spec.modules)
    count = min(len(ids), landmarks, max(FEWEST_LANDMARKS, LANDMARK_NUMBERS // size))
    complete = count == len(ids)
    chosen = ids if complete else sorted(np.random.default_rng(0).choice(np.array(ids, object), count, replace=False))
    read, half = (0.6, 1.0) if complete else (0.2, 0.4)  # shares of the whole after which these are done
    blocks = list(_blocks(zoo, chosen, reporter.part(0.0, read)))
    if not blocks:
        return None
    kept = [name for names, _ in blocks for name in names]
    base = stack([lora for _, loras in blocks for lora in loras], spec)
    among = gram(base, reporter=reporter.part(read, half))
    if complete:
        return from_gram(title, kept, among, directions)
    sizes = np.sqrt(np.diag(among).clip(1e-30)) if directions else np.ones(len(among))
    onto = nystroem(among / sizes / sizes[:, None]) / sizes[:, None]
    vectors, held, whole = [among / sizes[:, None] @ onto], 0.0, 0.0
    rest = sorted(set(ids) - set(chosen))
    for names, loras in _blocks(zoo, rest, reporter.part(half, 1.0)):
        batch = stack(loras, spec)
        kept += names
        squares = self_products(batch).clip(1e-30)
        norms = np.sqrt(squares) if directions else np.ones(len(squares))
        vectors.append(gram(batch, others=base) / norms[:, None] @ onto)  # each block alone: all products take GBs
        held += float(np.square(vectors[-1]).sum())
        whole += float((squares / norms**2).sum())
    return Space(title, tuple(kept), np.concatenate(vectors), held / whole if whole else 1.0)
