"""A space drawn in two or three dimensions, and kept in place when it is drawn again."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Literal

import numpy as np
import pandas as pd

from lol_core.errors import TaskError
from lol_core.insight.embedding import Space

Method = Literal["PCA", "UMAP"]


def project(
    space: Space,
    method: Method = "PCA",
    *,
    dimensions: int = 2,
    seed: int = 0,
    neighbours: int = 15,
    start: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A picture of a space: index ids, columns x, y (and z). UMAP depends on the seed.

    start: an earlier picture in as many dimensions. UMAP begins there, which keeps neighbours together but neither
    scale nor orientation, so the new picture is laid over it (see `align`). Raises TaskError when there are fewer
    LoRAs than dimensions + 1.
    """
    if len(space.ids) <= dimensions:
        raise TaskError(
            f"A map in {dimensions} dimensions needs more than {dimensions} LoRAs; {len(space.ids)} can be read."
        )
    from sklearn.decomposition import PCA  # takes a second to import

    places = PCA(min(dimensions, *space.vectors.shape), random_state=seed).fit_transform(space.vectors)
    places = np.pad(places, ((0, 0), (0, dimensions - places.shape[1])))
    if method == "UMAP":
        if start is None:
            first = 10 * (places - places.mean(0)) / max(places.std(), 1e-12)
        else:
            first = start.reindex(space.ids).fillna(start.mean()).to_numpy()
        places = _umap(space.vectors, first, min(neighbours, len(space.ids) - 1), seed)
    picture = pd.DataFrame(places.astype(np.float64), index=list(space.ids), columns=list("xyz")[:dimensions])
    return picture if start is None else align(picture, start)


def _umap(points: np.ndarray, first: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """UMAP from the places `first`, on exact neighbours."""
    from numba.core.dispatcher import Dispatcher
    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP, layouts, umap_, utils

    for module in (umap_, layouts, utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with suppress(RuntimeError):  # no folder to write to
                    function.enable_caching()  # compiled for the machine once, not in every process
    distances, indices = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(points)
    umap = UMAP(
        n_components=first.shape[1],
        n_neighbors=neighbours,
        random_state=seed,
        init=first.astype(np.float32),
        n_jobs=1,
        precomputed_knn=(indices, distances.astype(np.float32)),
    )
    with warnings.catch_warnings(action="ignore"):  # of what needs an approximate index; and of one job for a seed
        return np.asarray(umap.fit_transform(points))


def align(picture: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """A picture shifted, turned and perhaps reflected as a whole, so that the LoRAs of both lie as near as they can to
    where they were: least squares, by orthogonal Procrustes (P. Schönemann, 1966). Distances stay.

    As it is when the two share no LoRA.
    """
    shared = picture.index.intersection(earlier.index)
    if not len(shared):
        return picture
    new, old = picture.loc[shared], earlier.loc[shared]
    from scipy.linalg import orthogonal_procrustes

    turn, _ = orthogonal_procrustes(new - new.mean(), old - old.mean())
    return pd.DataFrame((picture - new.mean()).to_numpy() @ turn, picture.index, picture.columns) + old.mean()


def displacement(picture: pd.DataFrame, earlier: pd.DataFrame) -> float:
    """How far the LoRAs of both pictures lie from where they were: root mean square, in units of the earlier picture's
    radius (root mean square distance from its middle). NaN when they share none, or the earlier one is a point.
    """
    shared = picture.index.intersection(earlier.index)
    gap = np.square(picture.loc[shared] - earlier.loc[shared]).sum(axis=1).mean()
    radius = np.square(earlier - earlier.mean()).sum(axis=1).mean()
    return float(np.sqrt(gap / radius)) if radius > 0 else float("nan")
