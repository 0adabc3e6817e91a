"""Which points lie near each other, among up to millions: exact, by faiss where there are many and it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from sklearn.neighbors import NearestNeighbors

MANY = 20_000
"""Points from which faiss, an optional extra, is quicker than scikit-learn."""
BLOCK = 200
"""Points whose neighbours are looked up at a time."""


def within(points: np.ndarray, radius: float, many: int = MANY) -> Iterator[np.ndarray]:
    """For each of the points, (count, d), in their order: the places of all that are at most so far from it."""
    if len(points) >= many and find_spec("faiss"):
        yield from _by_faiss(np.ascontiguousarray(points, np.float32), radius)
        return
    neighbours = NearestNeighbors(radius=radius).fit(points)
    for start in range(0, len(points), BLOCK):
        yield from neighbours.radius_neighbors(points[start : start + BLOCK], return_distance=False)


def _by_faiss(points: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    import faiss

    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    for start in range(0, len(points), BLOCK):
        limits, _, places = index.range_search(points[start : start + BLOCK], radius**2)
        yield from np.split(places, limits[1:-1].astype(int))
