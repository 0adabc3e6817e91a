"""A collection as a table: what its headers, its weights and the files beside its LoRAs say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lol_core.collections.columns import detailed
from lol_core.collections.entry import Entry
from lol_core.collections.labels import with_labels
from lol_core.collections.runs import training_runs
from lol_core.collections.source import Source
from lol_core.core.header import ModuleHeader
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.health import HARMLESS, health
from lol_core.insight.order import places
from lol_core.insight.survey import Survey

FROM_WEIGHTS = ["health", "‖ΔW‖", "‖ΔW‖ by module", "rank used"]


def overview(
    source: Source, surveys: Mapping[str, Survey], ids: Sequence[str], runs: pd.Series | None = None
) -> pd.DataFrame:
    """The source's table of some LoRAs, and columns from the weights of those that have been read (health also from the
    headers alone), what sidecars claim, and `runs`, the training run of those that belong to one.
    """
    entries = list(detailed(source, ids))
    rows = {entry.path: _from_weights(entry, surveys.get(entry.path)) for entry in entries}
    weights = pd.DataFrame.from_dict(rows, orient="index", columns=FROM_WEIGHTS).dropna(axis=1, how="all")
    if "health" in weights:
        weights["health"] = weights["health"].astype(object).fillna("")
    extra = claims(entries) if runs is None else runs.reindex(list(ids)).to_frame().join(claims(entries))
    own = source.facts(entries).join(weights).join(extra.dropna(axis=1, how="all"))
    table = with_labels(own, source.labels, after="modules")
    first = [name for name in ("name", *weights.columns) if name in table]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _from_weights(
    entry: Entry, survey: Survey | None
) -> tuple[str | None, float | None, list[float] | None, float | None]:
    marks = ", ".join(mark.ailment for mark in health(entry, survey)) or None
    if survey is None or survey.problem is not None:
        return marks, None, None, None
    # no bar is as high as an infinite number, at which the whole cell is no chart
    norms = survey.norms[list(places(entry.headers))].tolist() if np.isfinite(survey.norms).all() else None
    return marks, survey.norm, norms, rank_used(entry, survey)


def rank_used(entry: Entry, survey: Survey) -> float:
    """Effective rank over rank, mean of the modules; of a Kronecker product over the largest that its factors' shapes
    allow.
    """
    ranks = np.array([_largest(module) if module.factor_shapes else module.rank for module in entry.headers])
    return float((survey.effective_ranks / ranks).mean())


def _largest(module: ModuleHeader) -> int:
    return math.prod(min(shape[0], math.prod(shape[1:])) for shape in module.factor_shapes)


def claims(entries: Iterable[Entry]) -> pd.DataFrame:
    """What sidecars claim of each LoRA that has one; every column says that it is claimed."""
    rows = {
        entry.path: {
            "trigger words (claimed)": ", ".join(sidecar.trigger_words) or None,
            "tags (claimed)": ", ".join(sidecar.tags) or None,
            "base model (claimed)": sidecar.base_model,
            "licence (claimed)": sidecar.licence,
        }
        for entry in entries
        if (sidecar := entry.sidecar)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class Examination:
    """What takes a look at every header. diagnoses: what is wrong with each LoRA, with columns path, what and reason;
    claims: see `claims`; runs: the training run of those that belong to one, by id; rank_used: of those whose weights
    have been read, by id.
    """

    diagnoses: pd.DataFrame
    claims: pd.DataFrame
    runs: pd.Series
    rank_used: pd.Series

    @classmethod
    def of(cls, source: Source, surveys: Mapping[str, Survey], reporter: Reporter = SILENT) -> Examination | None:
        """None when it was stopped."""
        rows, claimed, used = [], [], {}
        for i, entry in enumerate(detailed(source)):
            if i % 1000 == 0:
                reporter.count("Looking at headers: LoRA", i, len(source))
                if reporter.stopping:
                    return None
            survey = surveys.get(entry.path)
            found = [mark for mark in health(entry, survey) if mark.ailment not in HARMLESS]
            rows += [(entry.path, str(mark.ailment), mark.reason) for mark in found]
            if entry.sidecar:
                claimed.append(entry)
            if survey is not None and survey.problem is None:
                used[entry.path] = rank_used(entry, survey)
        diagnoses = pd.DataFrame(rows, columns=["path", "what", "reason"])
        runs = training_runs(source.names)["run"].rename("training run")
        return cls(diagnoses, claims(claimed), runs, pd.Series(used, dtype=float, name="rank used"))
