"""Maps of a collection: its space, a picture of that and the clusters in it, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from lol_core.collections.cache import cache_folder
from lol_core.collections.source import Source
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.embedding import Kind, Space, space_of
from lol_core.insight.picture import Method, displacement, project
from lol_core.learning.checkpoint import Checkpoint

MAX_KEPT = 32
"""Files of spaces and pictures that are kept; the longest unused goes first."""


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

    def table(self, source: Source, ids: Sequence[str]) -> pd.DataFrame:
        """Where some LoRAs lie, what they are called and their clusters. Index: lora, their ids."""
        names = [source.names[id] for id in ids]
        placed = self.picture.loc[list(ids)].assign(name=names, cluster=self.clusters.reindex(list(ids)))
        return placed.rename_axis("lora")

    def neighbours(self, source: Source, id: str, count: int = 8) -> pd.DataFrame:
        """The LoRAs nearest to one in the space, not on the picture: index ids, columns name and distance."""
        near = self.space.neighbours(id, count)
        return pd.DataFrame({"name": [source.names[other] for other in near.index], "distance": near})

    @property
    def remarks(self) -> list[str]:
        """What must be known to read the picture, in sentences."""
        remarks = []
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
    cache: Path | None = None,
) -> Map | None:
    """A map of a collection; its space and its picture are taken from the cache (the user's by default) where they are
    known. None when it was stopped on the way. Raises TaskError as `space_of` and `project` do.
    """
    folder = (cache or cache_folder()) / "maps"
    place = _place(folder, settings.space_key)
    if (kept := _read(place)) is not None:
        title, share, ids = str(kept["title"]), float(kept["share"]), tuple(map(str, kept["ids"]))
        space, clusters = Space(title, ids, kept["vectors"], share), pd.Series(kept["clusters"], index=list(ids))
    else:
        made = space_of(source, settings.ids, settings.kind, checkpoint, reporter.part(0.0, 0.8))
        if made is None:
            return None
        reporter.show("Finding clusters", 0.8)
        space, clusters = made, made.clusters()
        arrays = {"vectors": space.vectors, "clusters": clusters.to_numpy(), "ids": np.array(space.ids)}
        _write(place, arrays | {"share": np.array(space.share), "title": np.array(space.title)})
    place = _place(folder, astuple(settings))
    if (kept := _read(place)) is not None:
        places, moved = kept["places"], float(kept["moved"])
    else:
        reporter.show(f"Drawing {len(space.ids):,} LoRAs by {settings.method}", 0.9)
        shape = {"dimensions": settings.dimensions, "seed": settings.seed, "neighbours": settings.neighbours}
        drawn = project(space, settings.method, start=start, **shape)
        places, moved = drawn.to_numpy(), float("nan") if start is None else displacement(drawn, start)
        _write(place, {"places": places, "moved": np.array(moved)})
    picture = pd.DataFrame(places, index=list(space.ids), columns=list("xyz")[: settings.dimensions])
    return Map(space, clusters, picture, None if np.isnan(moved) else moved)


def colourings(source: Source, clusters: pd.Series) -> dict[str, pd.Series]:
    """What LoRAs on a map can be coloured by, by id: their cluster, their labels, their base model."""
    names = clusters.map(lambda k: "in no cluster" if k < 0 else f"cluster {k + 1}")
    labels = {str(name): source.labels[name] for name in source.labels if source.labels[name].notna().any()}
    base = {e.path: e.suggested_base or e.base_model or "unknown" for e in source.entries}
    return {"cluster": names.rename("cluster")} | labels | {"base model": pd.Series(base, name="base model")}


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
    return f"{len(ids):,} × {entry.suggested_base or entry.base_model or 'unknown base'}, {entry.modules} modules"


def _place(folder: Path, key: tuple[object, ...]) -> Path:
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npz"


def _read(place: Path) -> Mapping[str, np.ndarray] | None:
    """The arrays of a file, None when it is not there or damaged."""
    try:
        with place.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        os.utime(place)
        return arrays
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        return None


def _write(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file whole or not at all, and delete the longest unused of too many. On a full disk nothing is kept."""
    writing = place.with_suffix(f".{os.getpid()}.writing")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with writing.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        writing.replace(place)
        by_use = sorted(place.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
        for path in by_use[:-MAX_KEPT]:
            path.unlink(missing_ok=True)
    except OSError:
        writing.unlink(missing_ok=True)
