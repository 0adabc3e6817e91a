"""A collection as a table: what its headers, its weights and the files beside its LoRAs say, and how it is searched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lol_core.collections.entry import Entry
from lol_core.collections.runs import training_runs
from lol_core.collections.source import Source
from lol_core.errors import ZooError
from lol_core.insight.health import health
from lol_core.insight.order import places
from lol_core.insight.survey import Survey

FROM_WEIGHTS = ["health", "‖ΔW‖", "‖ΔW‖ by module", "rank used"]


def overview(source: Source, surveys: Mapping[str, Survey]) -> pd.DataFrame:
    """The source's table, and columns from the weights of the LoRAs that have been read (health also from the headers
    alone), from their training runs, and what sidecars claim.
    """
    rows = {e.path: _from_weights(e, surveys.get(e.path)) for e in source.entries}
    weights = pd.DataFrame.from_dict(rows, orient="index", columns=FROM_WEIGHTS).dropna(axis=1, how="all")
    if "health" in weights:
        weights["health"] = weights["health"].astype(object).fillna("")
    runs = training_runs(source.names)["run"].rename("training run").to_frame()
    extra = runs.join(claims(source), how="outer").reindex(source.ids).dropna(axis=1, how="all")
    table = source.table().join(weights).join(extra)
    first = [name for name in ("name", *weights.columns) if name in table]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _from_weights(
    entry: Entry, survey: Survey | None
) -> tuple[str | None, float | None, list[float] | None, float | None]:
    marks = ", ".join(mark.ailment for mark in health(entry, survey)) or None
    if survey is None or survey.problem is not None:
        return marks, None, None, None
    ranks = np.array([module.rank for module in entry.headers])
    norms = survey.norms[list(places(entry.headers))].tolist()
    return marks, survey.norm, norms, float((survey.effective_ranks / ranks).mean())


def claims(source: Source) -> pd.DataFrame:
    """What sidecars claim of each LoRA that has one; every column says that it is claimed."""
    rows = {
        entry.path: {
            "trigger words (claimed)": ", ".join(sidecar.trigger_words) or None,
            "tags (claimed)": ", ".join(sidecar.tags) or None,
            "base model (claimed)": sidecar.base_model,
            "licence (claimed)": sidecar.licence,
        }
        for entry in source.entries
        if (sidecar := entry.sidecar)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def diagnoses(source: Source, surveys: Mapping[str, Survey]) -> pd.DataFrame:
    """What is wrong or odd about each LoRA: path, what, reason."""
    rows = [
        {"path": entry.path, "what": mark.ailment, "reason": mark.reason}
        for entry in source.entries
        for mark in health(entry, surveys.get(entry.path))
    ]
    return pd.DataFrame(rows, columns=["path", "what", "reason"])


def searchable(source: Source) -> list[str]:
    """What a search looks through, of each LoRA: path, base model, everything the header says and sidecars claim."""
    texts = []
    for e in source.entries:
        header = json.dumps(dict(e.metadata), ensure_ascii=False)
        texts.append(" ".join((e.path, e.base_model or "", e.suggested_base or "", header, e.sidecar.text)))
    return texts


def matching(texts: Sequence[str], query: str) -> np.ndarray:
    """Which texts hold a query, whatever its case; between slashes it is a regular expression. (N,) bool. Raises
    ZooError when it is none.
    """
    inside = re.fullmatch(r"/(.+)/", query)
    try:
        pattern = re.compile(inside[1] if inside else re.escape(query), re.IGNORECASE)
    except re.error as error:
        raise ZooError(
            f"{query} is no regular expression ({error}). Without the slashes it is searched as it stands."
        ) from error
    return np.array([pattern.search(text) is not None for text in texts], bool)
