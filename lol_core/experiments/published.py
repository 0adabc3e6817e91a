"""Models of others as they were published, searched by halving like the paper's five, beside those and TuckerNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from lol_core.experiments.comparison import best_rival, cells, chart, described, differences, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.models import ASKED as EVERYTHING
from lol_core.experiments.models import ORDER, SEEDS, UNSEEN_NOTE, beats, constants, unseen
from lol_core.experiments.paper import PUBLISHED
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.trials import Trials

TITLE = "Models of others as published, searched by halving"
ASKED = {
    column: EVERYTHING[column]
    for column in (
        "classes, accuracy",
        "sources, accuracy",
        "validation loss, R²",
        "accuracy, R²",
        "attributes, accuracy",
    )
}
LEFT_OUT = {"attributes, accuracy": ("w2t",)}
"""Column → published models that were not asked."""


def run(context: Context) -> Result:
    context = context.by_halving()
    seeds = 1 if context.small else max(SEEDS, context.budget.seeds)
    parts, findings, trials = [], [], []
    for column, (question, score) in list(ASKED.items())[: 2 if context.small else None]:
        published = [name for name in PUBLISHED if name not in LEFT_OUT.get(column, ())]
        asked = context.trials(question, (*published, *ORDER), seeds)
        trials.append(asked)
        parts.append(cells(column, intervals(asked, score)))
        findings.append(_best_of_others(asked, column, score, published))
        findings.append(beats(asked, unseen(context, question, score), column, score))
    sizes = {line["model"]: line["parameters"] / 1000 for line in trials[0].chosen() if "parameters" in line}
    parts.append(cells("parameters (classes), thousands", constants(sizes, trials[0].table())))
    notes = [
        described(context.budget, authors=False),
        "They are ported from their authors' code where there is some (docs/methods.md), and trained as the others here"
        " are, not by their authors' schedules. DSiRe fits nothing; spectral statistics are read linearly. MVProbe and"
        " ProbeX read one module, a quarter, a half or three quarters along the LoRA, which is searched in place of"
        " dropout. Normalised inputs are searched for the five alone: the others have them as they are, and TuckerNet"
        " the weight of its directions (1 or 0.1) instead.",
        UNSEEN_NOTE,
        "The CLIP score and the data-set size were not asked, nor attributes of W2T, whose search takes more than an"
        " hour of a core there.",
    ]
    table = pd.concat(parts, ignore_index=True)
    first = next(iter(ASKED))
    asked_with = settings(trials, replace(context.budget, seeds=seeds))
    return Result("published", TITLE, table, findings, notes, chart(table, first), asked_with)


def _best_of_others(trials: Trials, column: str, score: str, published: Sequence[str]) -> Finding:
    best = best_rival(trials, score, published)
    gap = differences(trials, score, best, "gl_net", among=len(published))
    means = intervals(trials, score)["mean"]
    return Finding(
        f"The best of the published models is above GL-net: {column}.",
        verdict(gap),
        f"{PUBLISHED[best].title} {means[PUBLISHED[best].title]:.3f} against {means['GL-net']:.3f}; on the same splits"
        f" {with_interval(gap)}, as one picked from {len(published)}.",
        in_paper=False,
    )
