"""Everything that can be said against the LoRAs of a collection, for people and for pipelines (SARIF 2.1.0)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import quote

import pandas as pd

from lol_core.collections.source import Source
from lol_core.collections.walk import OTHER_FILES
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.health import Ailment, health
from lol_core.insight.survey import Survey
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint

NOTHING_KEPT = "Nothing of the audit is kept."
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
LINK = "https://arxiv.org/abs/2410.04207"


class Level(IntEnum):
    """How bad it is. The names are SARIF's."""

    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Remark:
    """One thing about one file. rule: its kind, the same for all files; message: a sentence."""

    path: str
    rule: str
    level: Level
    message: str


LEVELS = {
    Ailment.UNREADABLE: Level.ERROR,
    Ailment.OVERFLOWING: Level.ERROR,
    Ailment.UNTRAINED: Level.WARNING,
    Ailment.PARTLY_ZERO: Level.WARNING,
    Ailment.RANK_DEFICIENT: Level.NOTE,
    Ailment.CONTRADICTION: Level.WARNING,
}


def audit(
    source: Source,
    surveys: Mapping[str, Survey],
    same: pd.DataFrame | None = None,
    models: Sequence[Checkpoint] = (),
    *,
    reporter: Reporter = SILENT,
    workers: int | str = 1,
) -> Iterator[Remark]:
    """What is refused; what is wrong or odd; which files are the same function (`duplicates`' table); what models say
    of each, and, as far as they know their training LoRAs, whether they can know. workers: processes that ask the
    models, as `executor` takes them.
    """
    for entry in source.refused:
        reason = entry.reason or "It cannot be read."
        if reason in OTHER_FILES.values():
            yield Remark(entry.path, "no LoRA", Level.NOTE, reason)
        else:
            yield Remark(entry.path, "not read", Level.ERROR, reason)
    for entry in source.entries:
        for mark in health(entry, surveys.get(entry.path)):
            yield Remark(entry.path, mark.ailment, LEVELS[mark.ailment], mark.reason)
    if same is not None:
        for _, group in same.groupby("group"):
            first, *others = group["lora"]
            for other in others:
                yield Remark(other, "same function", Level.NOTE, f"It is the same function as {first}.")
    for number, model in enumerate(models):
        yield from _asked(source, model, reporter.item(number, len(models)), workers=workers)


def _asked(
    source: Source, model: Checkpoint, reporter: Reporter = SILENT, *, workers: int | str = 1
) -> Iterator[Remark]:
    """What a model says of each LoRA, and whether it can know. Raises Stopped when the reporter says so."""
    answers = Answers.of(model, source, workers=workers, reporter=reporter)
    reporter.check(NOTHING_KEPT)
    for id, row in answers.values.to_dict("index").items():
        text = ", ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items())
        yield Remark(str(id), "predicted", Level.NOTE, f"{model.title}: {text}")
    for id, words in answers.marks.loc[answers.marks["outside"].astype(bool), "remark"].items():
        yield Remark(str(id), "unlike the training", Level.WARNING, f"It is {words} ({model.title}).")
    for id, reason in answers.refused.items():
        if model.spec.misfits(source.by_id[id]):
            yield Remark(id, "not for this model", Level.NOTE, f"{model.title} cannot read it: {reason}")
        else:
            yield Remark(id, "not read", Level.ERROR, reason)


def as_sarif(remarks: Sequence[Remark], version: str) -> dict[str, Any]:
    """Remarks as a SARIF log, which code hosts and pipelines show beside the files."""
    rules = sorted({remark.rule for remark in remarks})
    return {
        "$schema": SARIF,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lol audit",
                        "version": version,
                        "informationUri": LINK,
                        "rules": [{"id": rule.replace(" ", "-"), "name": rule} for rule in rules],
                    }
                },
                "results": [
                    {
                        "ruleId": remark.rule.replace(" ", "-"),
                        "level": remark.level.name.lower(),
                        "message": {"text": remark.message},
                        "locations": [{"physicalLocation": {"artifactLocation": {"uri": quote(remark.path)}}}],
                    }
                    for remark in remarks
                ],
            }
        ],
    }
