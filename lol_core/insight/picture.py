"""A space drawn in two or three dimensions, and kept in place when it is drawn again."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Literal

import numpy as np
import pandas as pd
import torch

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError
from lol_core.insight.embedding import Space
from lol_core.insight.neighbours import k_nearest

Method = Literal["PCA", "UMAP"]
Graph = tuple[np.ndarray, np.ndarray]
"""For each LoRA of a space the places of the nearest, itself first, and their distances: both (count, neighbours)."""


def project(
    space: Space,
    method: Method = "PCA",
    *,
    dimensions: int = 2,
    seed: int = 0,
    neighbours: int = 15,
    start: pd.DataFrame | None = None,
    graph: Graph | None = None,
) -> pd.DataFrame:
    """A picture of a space: index ids, columns x, y (and z). UMAP depends on the seed. graph: the neighbours of each
    LoRA, where they are known (see `graph_of`).

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
        graph = graph or graph_of(space, neighbours)
        assert graph is not None, "nothing stops it"
        places = _umap(space.vectors, first, graph, seed)
    picture = pd.DataFrame(places.astype(np.float64), index=list(space.ids), columns=list("xyz")[:dimensions])
    return picture if start is None else align(picture, start)


def graph_of(space: Space, neighbours: int = 15, reporter: Reporter = SILENT) -> Graph | None:
    """What UMAP needs to know of a space, which depends neither on its seed nor on where it starts. None when it was
    stopped on the way.
    """
    return k_nearest(space.vectors, min(neighbours, len(space.ids) - 1), reporter)


def _umap(points: np.ndarray, first: np.ndarray, graph: Graph, seed: int) -> np.ndarray:
    """UMAP from the places `first`."""
    from numba.core.dispatcher import Dispatcher
    from umap import UMAP, layouts, umap_, utils

    for module in (umap_, layouts, utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                with suppress(RuntimeError):  # no folder to write to
                    function.enable_caching()  # compiled for the machine once, not in every process
    umap = UMAP(
        n_components=first.shape[1],
        n_neighbors=graph[0].shape[1],
        random_state=seed,
        init=first.astype(np.float32),
        n_jobs=1,
        precomputed_knn=graph,
    )
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(action="ignore"):  # of what needs an approximate index; and of one job for a seed
            return np.asarray(umap.fit_transform(points))
    finally:
        torch.set_num_threads(threads)  # numba, when it starts, sets it to all cores for every user of OpenMP


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
