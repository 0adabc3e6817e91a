"""Maps of a collection: its space, a picture of that and the clusters in it, computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.collections.columns import values
from lol_core.collections.source import Source
from lol_core.collections.store import Kept, Store
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.embedding import SKETCHED, Kind, Space, space_of
from lol_core.insight.picture import Graph, Method, displacement, graph_of, project
from lol_core.insight.survey import SKETCH
from lol_core.learning.checkpoint import Checkpoint


@dataclass(frozen=True)
class MapSettings:
    """What a map depends on. fingerprint: of the collection; ids: the LoRAs to place; model: what identifies the
    checkpoint of a latent, else ""; neighbours: of UMAP.
    """

    fingerprint: str
    ids: tuple[str, ...]
    kind: Kind
    model: str = ""
    method: Method = "PCA"
    dimensions: int = 2
    seed: int = 0
    neighbours: int = 15

    @property
    def space_key(self) -> tuple[object, ...]:
        return self.fingerprint, self.ids, self.kind, self.model

    @property
    def axes(self) -> list[str]:
        """What the coordinates of the picture are called: "PCA 1"."""
        return [f"{self.method} {axis}" for axis in range(1, self.dimensions + 1)]

    def continues(self, other: MapSettings) -> bool:
        """Whether the picture of the other can be the start of this one, so that points stay about where they were."""
        same = ("kind", "model", "method", "dimensions")
        return all(getattr(self, name) == getattr(other, name) for name in same)


@dataclass(frozen=True)
class Map:
    """clusters: id → cluster number, −1 for those in none; picture: see `project`; moved: how far the picture lies from
    the one it started from (see `displacement`), None where it started from none.
    """

    space: Space
    clusters: pd.Series
    picture: pd.DataFrame
    moved: float | None = None

    def table(self, source: Source, ids: Sequence[str], axes: Sequence[str]) -> pd.DataFrame:
        """Where some LoRAs lie, what they are called and their clusters. Index: lora, their ids; axes: what columns of
        coordinates are called.
        """
        names = [source.names[id] for id in ids]
        clusters = cluster_titles(self.clusters.reindex(list(ids)))
        places = self.picture.loc[list(ids)].set_axis(list(axes), axis=1)
        return places.assign(name=names, cluster=clusters).rename_axis("lora")

    def neighbours(self, source: Source, id: str, count: int = 8) -> pd.DataFrame:
        """The LoRAs nearest to one in the space, not on the picture: index ids, columns name and distance."""
        near = self.space.neighbours(id, count)
        return pd.DataFrame({"name": [source.names[other] for other in near.index], "distance": near})

    @property
    def remarks(self) -> list[str]:
        """What must be known to read the picture, in sentences."""
        remarks = []
        if self.space.title == SKETCHED:
            remarks.append(
                f"LoRAs are placed by the {SKETCH} numbers of each that the survey of weights keeps: distances are"
                f" estimates, with a standard error of {(0.5 / SKETCH) ** 0.5:.0%} to {(3 / SKETCH) ** 0.5:.0%}. The"
                " page LoRA finds the nearest by exact distances."
            )
        if self.space.share < 0.999:
            remarks.append(
                f"So many LoRAs are placed by their products with {len(self.space.vectors[0]):,} of them, drawn at"
                f" random. That holds {self.space.share:.0%} of the others' squared norm: distances come out too small"
                " where it is little. The page LoRA finds the nearest by exact distances."
            )
        if self.moved is not None:
            remarks.append(
                f"Laid over the map before it: its points lie {self.moved:.0%} of that map's radius from where they"
                " were (root mean square)."
            )
        if "z" in self.picture:
            remarks.append("Drag to turn it. Lasso and box work in two dimensions.")
        return remarks


def draw_map(
    source: Source,
    settings: MapSettings,
    *,
    checkpoint: Checkpoint | None = None,
    start: pd.DataFrame | None = None,
    reporter: Reporter = SILENT,
    store: Store | None = None,
) -> Map | None:
    """A map of a collection; its space, the neighbours in it and its picture are taken from the store (the user's by
    default) where they are known. None when it was stopped on the way. Raises TaskError as `space_of` and `project` do.
    """
    store = store or Store()
    key = repr(settings.space_key)
    if (kept := store.read(Kept.MAPS, key)) is not None:
        arrays, words = kept
        ids = tuple(json.loads(words["ids"]))
        space = Space(words["title"], ids, arrays["vectors"].numpy(), float(words["share"]))
        clusters = pd.Series(arrays["clusters"].numpy(), index=list(ids))
    else:
        computed = space_of(
            source, settings.ids, settings.kind, checkpoint=checkpoint, reporter=reporter.part(0.0, 0.7), store=store
        )
        if computed is None:
            return None
        reporter.show("Finding clusters", 0.7)
        space, clusters = computed, computed.clusters()
        words = {"title": space.title, "share": repr(space.share), "ids": json.dumps(space.ids)}
        store.write(Kept.MAPS, key, _tensors(vectors=space.vectors, clusters=clusters.to_numpy()), words)
    key = repr(astuple(settings))
    if (kept := store.read(Kept.MAPS, key)) is not None:
        arrays, words = kept
        places, moved = arrays["places"].numpy(), float(words["moved"])
    else:
        graph = None
        if settings.method == "UMAP":
            graph = _graph(space, settings, store, reporter.part(0.8, 0.9))
            if graph is None:
                return None
        reporter.show(f"Drawing {len(space.ids):,} LoRAs by {settings.method}", 0.9)
        shape = {"dimensions": settings.dimensions, "seed": settings.seed, "neighbours": settings.neighbours}
        drawn = project(space, settings.method, start=start, graph=graph, **shape)
        places, moved = drawn.to_numpy(), float("nan") if start is None else displacement(drawn, start)
        store.write(Kept.MAPS, key, _tensors(places=places), {"moved": repr(moved)})
    picture = pd.DataFrame(places, index=list(space.ids), columns=list("xyz")[: settings.dimensions])
    return Map(space, clusters, picture, None if np.isnan(moved) else moved)


def _graph(space: Space, settings: MapSettings, store: Store, reporter: Reporter) -> Graph | None:
    key = repr((settings.space_key, "neighbours", settings.neighbours))
    if (kept := store.read(Kept.MAPS, key)) is not None:
        arrays, _ = kept
        return arrays["places"].numpy(), arrays["distances"].numpy()
    if (graph := graph_of(space, settings.neighbours, reporter)) is not None:
        store.write(Kept.MAPS, key, _tensors(places=graph[0], distances=graph[1]), {})
    return graph


def cluster_titles(clusters: pd.Series) -> pd.Series:
    """What the cluster of each LoRA is called."""
    return clusters.map(lambda k: "in no cluster" if k < 0 else f"cluster {k + 1}").rename("cluster")


def colourings(source: Source, clusters: pd.Series) -> dict[str, Callable[[], pd.Series]]:
    """What LoRAs on a map can be coloured by, made by id when it is asked for: their cluster, their labels, their base
    model.
    """

    def base() -> pd.Series:
        suggested, claimed = (
            of.mask(of == "") for of in (values(source, "suggested_base"), values(source, "base_model"))
        )
        return suggested.fillna(claimed).fillna("unknown").rename("base model")

    def label(column: pd.Series) -> pd.Series:
        return column

    labels = {str(name): partial(label, column) for name, column in source.labels.items() if column.notna().any()}
    return {"cluster": lambda: cluster_titles(clusters)} | labels | {"base model": base}


def regions(clusters: pd.Series, names: Mapping[int, str]) -> dict[str, list[str]]:
    """The name of each cluster → its LoRAs; a name that several share carries its number of LoRAs."""
    named: dict[str, list[str]] = {}
    for k, name in names.items():
        members = list(clusters.index[clusters == k])
        named[f"{name} · {len(members)}" if name in named else name] = members
    return named


def family_title(source: Source, ids: Sequence[str]) -> str:
    """What LoRAs of the same modules are called: how many, of which base model."""
    entry = source.by_id[ids[0]]
    modules = f"{entry.modules} module{'' if entry.modules == 1 else 's'}"
    dora = ", DoRA" if any(module.magnitude for module in entry.headers) else ""
    return f"{len(ids):,} × {entry.suggested_base or entry.base_model or 'unknown base'}, {modules}{dora}"


def _tensors(**arrays: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}
