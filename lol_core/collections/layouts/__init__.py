"""Public collections that are known by how their files lie, and the labels that belong to them.

A layout is a file of its own here and a line in `LAYOUTS`. The first that recognises a collection without a table of
labels gives it its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa

from lol_core.collections.columns import size
from lol_core.collections.durable import replace_file
from lol_core.collections.files import FileSource, Listing, list_folder
from lol_core.collections.folder import Zoo
from lol_core.collections.labels import join_labels, read_labels
from lol_core.collections.layouts import learning_on_loras, lots_of_loras, model_j, w2t
from lol_core.collections.layouts.beside import Beside
from lol_core.collections.layouts.lora_wise import open_lora_wise
from lol_core.collections.layouts.weights2weights import open_weights2weights
from lol_core.collections.names import counted, user_path
from lol_core.collections.remote_files import in_words
from lol_core.collections.row_source import RowSource
from lol_core.collections.source import Source
from lol_core.core.progress import SILENT, Reporter


@dataclass(frozen=True)
class Layout:
    """recognises: whether a collection is laid out so; labels: of its LoRAs, indexed by their ids."""

    name: str
    recognises: Callable[[Beside], bool]
    labels: Callable[[Beside], pd.DataFrame]


def _by_ids(recognises: Callable[[Sequence[str]], bool]) -> Callable[[Beside], bool]:
    return lambda beside: recognises(beside.ids)


LAYOUTS = (
    Layout("Learning on LoRAs, CelebA", _by_ids(learning_on_loras.is_celeba), learning_on_loras.celeba),
    Layout("Learning on LoRAs, Imagenette", _by_ids(learning_on_loras.is_imagenette), learning_on_loras.imagenette),
    Layout("Learning on LoRAs, ARC", learning_on_loras.is_arc, learning_on_loras.arc),
    Layout("Model-J of ProbeX", _by_ids(model_j.is_model_j), model_j.model_j),
    Layout("W2T, images", _by_ids(w2t.is_images), w2t.images),
    Layout("W2T, trials of a language model", _by_ids(w2t.is_trials), w2t.trials),
    Layout("W2T, GoEmotions", w2t.is_emotions, w2t.emotions),
    Layout("Lots-of-LoRAs", _by_ids(lots_of_loras.is_lots_of_loras), lots_of_loras.lots_of_loras),
)


ROWS: tuple[Callable[[str, str, Listing], RowSource | None], ...] = (open_lora_wise, open_weights2weights)
"""Collections whose LoRAs are no files: from address, name and listing."""


def as_rows(source: Source, labels: str | Path | None = None) -> Source:
    """The LoRAs that are rows of the files of a source, where it has no other LoRAs and is such a collection. labels: a
    table to be used in the place of its own. Raises ZooError when that does not fit.
    """
    if len(source) or not isinstance(source, FileSource | Zoo):
        return source
    listing = source.listing if isinstance(source, FileSource) else list_folder(source.folder)
    opened = (opener(source.address, source.name, listing) for opener in ROWS)
    rows = next((rows for rows in opened if rows is not None), None)
    if rows is not None and labels:
        path = user_path(labels)
        rows = replace(rows, labels=join_labels(read_labels(path), rows.ids, path)[0])
    if rows is None or "://" not in source.address:
        return rows or source
    there = f"The weights of these {len(rows):,} LoRAs are {in_words(size(rows))} there."
    return replace(rows, remarks=(*rows.remarks, f"{there} They come when they are needed."))


def with_own_labels(source: Source, reporter: Reporter = SILENT) -> Source:
    """The source with the labels of the public collection that it is, where it is one and has no table of its own.

    Raises Stopped when the reporter says so.
    """
    if not isinstance(source, FileSource | Zoo) or source.labels.shape[1] or source.labels_problem:
        return source
    beside = Beside(source, reporter=reporter)
    for layout in LAYOUTS:
        if layout.recognises(beside):
            labels = _known(source, layout)
            if labels is None:
                labels = layout.labels(beside).dropna(axis=1, how="all")
                if not beside.failed:
                    _keep(source, layout, labels)
            remarks = [f"Laid out as the collection {layout.name}: its own labels are joined."]
            if beside.failed:
                failed = counted(len(beside.failed), "file")
                remarks.append(
                    f"Could not be read: {failed} with labels, first {beside.failed[0]}. Open it again to try again."
                )
            return replace(source, labels=labels, remarks=(*source.remarks, *remarks))
    return source


def _place(source: FileSource | Zoo, layout: Layout) -> Path | None:
    """Where the labels of a collection that lies elsewhere are kept, so that it opens again without a network."""
    if not isinstance(source, FileSource) or "://" not in source.address:
        return None
    mark = hashlib.sha256(f"{layout.name}\0{source.fingerprint}".encode()).hexdigest()[:16]
    return source.database.with_suffix(f".{mark}.labels.parquet")


def _known(source: FileSource | Zoo, layout: Layout) -> pd.DataFrame | None:
    place = _place(source, layout)
    try:
        return pd.read_parquet(place) if place and place.is_file() else None
    except (OSError, ValueError):
        return None


def _keep(source: FileSource | Zoo, layout: Layout, labels: pd.DataFrame) -> None:
    if place := _place(source, layout):
        with suppress(OSError, ValueError, pa.ArrowException):  # they are read anew the next time
            replace_file(place, labels.to_parquet, shared=True)
