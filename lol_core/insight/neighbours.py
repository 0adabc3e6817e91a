"""What lies near each other: points, exactly, by faiss where there are many and it is installed; and LoRAs in weight
space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice

import numpy as np
import pandas as pd
import torch

from lol_core.collections.source import Source
from lol_core.core.geometry import inner_product
from lol_core.core.header import ByIdentity, ModuleHeader
from lol_core.core.naming import common_names
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ModelError
from lol_core.insight.survey import Survey

MANY = 20_000
"""Points from which faiss, an optional extra, is quicker than a table of distances."""
BLOCK = 200
"""Points of which all that are near are looked up at a time."""
AT_ONCE = 1000
"""Points of which the nearest are looked up at a time: enough to take no longer than all at once."""


def within(points: np.ndarray, radius: float, many: int = MANY) -> Iterator[np.ndarray]:
    """For each of the points, (count, d), in their order: the places of all that are at most so far from it."""
    if len(points) >= many and find_spec("faiss"):
        yield from _by_faiss(np.ascontiguousarray(points, np.float32), radius)
        return
    every = torch.from_numpy(np.asarray(points, np.float64))
    for start in range(0, len(points), BLOCK):
        yield from (row.nonzero()[:, 0].numpy() for row in torch.cdist(every[start : start + BLOCK], every) <= radius)


def _by_faiss(points: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    import faiss

    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    for start in range(0, len(points), BLOCK):
        limits, _, places = index.range_search(points[start : start + BLOCK], radius**2)
        yield from np.split(places, limits[1:-1].astype(int))


def k_nearest(
    points: np.ndarray, k: int, reporter: Reporter = SILENT, many: int = MANY
) -> tuple[np.ndarray, np.ndarray] | None:
    """For each of the points, (count, d): the places of the k nearest, itself first, and their distances, both
    (count, k), ascending. Exact up to rounding. None when it was stopped on the way.
    """
    if len(points) >= many and find_spec("faiss"):
        import faiss

        points = np.ascontiguousarray(points, np.float32)
        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)

        def search(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            squares, places = index.search(some, k)
            return places, np.sqrt(squares.clip(0))
    else:
        from sklearn.neighbors import NearestNeighbors  # takes a second to import

        index = NearestNeighbors(n_neighbors=k).fit(points)

        def search(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            distances, places = index.kneighbors(some)
            return places, distances

    parts = []
    for start in range(0, len(points), AT_ONCE):
        if reporter.stopping:
            return None
        parts.append(_itself_first(*search(points[start : start + AT_ONCE]), start))
        reporter.count("Neighbours of LoRAs:", min(start + AT_ONCE, len(points)), len(points))
    places, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    return places, distances.astype(np.float32)


def _itself_first(places: np.ndarray, distances: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the points from `start` on, each led by its own point; a copy of it may have come first, or so many
    copies that it was not there.
    """
    rows = np.arange(len(places))
    own = places == (rows + start)[:, None]
    at = np.where(own.any(1), own.argmax(1), places.shape[1] - 1)
    places[rows, at], distances[rows, at] = places[:, 0], distances[:, 0]
    places[:, 0], distances[:, 0] = rows + start, 0.0
    return places, distances


def nearest(zoo: Source, surveys: dict[str, Survey], id: str, count: int = 8, *, candidates: int = 40) -> pd.DataFrame:
    """The LoRAs whose updates are nearest to one: index ids; columns distance, ‖ΔW − ΔW′‖ / ‖ΔW‖, and cosine,
    ascending by distance.

    Sketches choose the candidates among those that adapt a module of it in the same shape; the numbers are exact, over
    the modules of both (a module that only one has counts as zero in the other; so do two Kronecker products of other
    factor shapes, whose product may take as long as one of whole weights).
    """
    own = surveys[id]
    others = [
        other
        for other, survey in surveys.items()
        if other != id and survey.problem is None and survey.norm > 0 and other in zoo.by_id
    ]
    if own.problem is not None or own.norm == 0 or not others:
        return pd.DataFrame(columns=["distance", "cosine"])
    gaps = np.linalg.norm(np.stack([surveys[other].sketch for other in others]) - own.sketch, axis=1)

    def modules_of(id: str) -> frozenset[tuple[str, int, int]]:
        return _modules(ByIdentity(zoo.by_id[id].headers))

    modules = modules_of(id)
    related = (others[i] for i in np.argsort(gaps) if not modules.isdisjoint(modules_of(others[i])))
    lora = zoo.load(id)
    rows = {}
    for other_id in islice(related, candidates):
        near, product = zoo.load(other_id), 0.0
        for name, layer in lora.by_common_name.items():
            other = near.by_common_name.get(name)
            if other is None or len({layer.factor_shapes, other.factor_shapes, ()}) > 2:
                continue
            with suppress(ModelError):  # of another shape
                product += inner_product(layer, other)
        a, b = own.norm, surveys[other_id].norm
        rows[other_id] = (max(a**2 + b**2 - 2 * product, 0.0) ** 0.5 / a, product / (a * b))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["distance", "cosine"], dtype=np.float64)
    return table.nsmallest(count, "distance")


@lru_cache(maxsize=64)
def _modules(headers: ByIdentity[Sequence[ModuleHeader]]) -> frozenset[tuple[str, int, int]]:
    """The modules of a LoRA, by their common names, with the sizes of their weights."""
    names = common_names(module.name for module in headers.of)
    return frozenset((name, *module.widths) for name, module in zip(names, headers.of, strict=True))
