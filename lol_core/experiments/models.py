"""Every model on every question: the paper's five, those of others, ported, and TuckerNet, searched by halving on the
same splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from lol_core.experiments.comparison import (
    best_rival,
    by_split,
    cells,
    chart,
    described,
    differences,
    intervals,
    settings,
)
from lol_core.experiments.context import Context
from lol_core.experiments.paper import COMPARED, FIVE, PUBLISHED
from lol_core.experiments.question import Question
from lol_core.experiments.result import Finding, Holds, Result, verdict, with_interval
from lol_core.experiments.table2 import FOLDED_QUESTION
from lol_core.experiments.table2 import QUESTION as CLIP_QUESTION
from lol_core.experiments.table3 import ATTRIBUTES_QUESTION, CLASSES_QUESTION
from lol_core.experiments.table4 import SIZE_QUESTION
from lol_core.experiments.table5 import ACCURACY_QUESTION, LOSS_QUESTION, SOURCES_QUESTION
from lol_core.experiments.timing import Shape, time_model
from lol_core.experiments.trials import Trials
from lol_core.learning.devices import find_device
from lol_core.learning.verdict import over_seeds

TITLE = "Models of others, ported and searched as ours are, and TuckerNet, beside the five"
ASKED: dict[str, tuple[Question, str]] = {
    "CLIP score, τ": (CLIP_QUESTION, "kendall_tau"),
    "attributes, accuracy": (ATTRIBUTES_QUESTION, "accuracy"),
    "classes, accuracy": (CLASSES_QUESTION, "accuracy"),
    "data-set size, accuracy": (SIZE_QUESTION, "accuracy"),
    "sources, accuracy": (SOURCES_QUESTION, "accuracy"),
    "validation loss, R²": (LOSS_QUESTION, "r2"),
    "accuracy, R²": (ACCURACY_QUESTION, "r2"),
}
"""Column → the question and its score."""
LEFT_OUT = {
    "CLIP score, τ": ("w2t",),
}
"""Column → published models that were not asked."""
ORDER = ("tucker", *(name for name in FIVE if name != "dense"), "dense")
"""Dense takes longest, so it comes last."""
TIMED = Shape(16, 128, 128, 4)
SEEDS = 5
SEEN, UNSEEN = 3, 5
"""Seeds 0, 1, 2 were looked at while TuckerNet was made; the next five, other splits of the same LoRAs, were not."""

UNSEEN_NOTE = (
    f"TuckerNet was made with the test scores of seeds 0 to {SEEN - 1} in sight: its parts on seeds 0 and 1, its second"
    " weight of directions after a first table of all three. Its scores in the table are flattered by that, so what"
    f" is found of it is judged on seeds {SEEN} to {SEEN + UNSEEN - 1}, for which it was changed no more. These are new"
    " splits of the same LoRAs and not new LoRAs: of each test part about two in five had been test LoRAs of the seeds"
    f" before, whose scores were seen. Intervals of the differences are widened for {len(ASKED)} questions"
    " (Bonferroni). Of the folds of the CLIP score none is unseen: their LoRAs are those of the seeds."
)


def run(context: Context) -> Result:
    context = context.by_halving()
    parts, findings, trials = [], [], []
    budget = context.budget if context.small else replace(context.budget, seeds=max(SEEDS, context.budget.seeds))
    for column, (question, score) in list(ASKED.items())[: 2 if context.small else None]:
        question = FOLDED_QUESTION if question is CLIP_QUESTION else question
        published = [name for name in PUBLISHED if name not in LEFT_OUT.get(column, ())]
        ours = context.trials(question, (*published, *ORDER), budget.seeds)
        trials.append(ours)
        parts.append(cells(column, intervals(ours, score)))
        findings.append(_best_of_others(ours, column, score, published))
        findings.append(beats(ours, unseen(context, question, score), column, score))
    asked = trials[-1].table()  # of all models, but in a small run
    sizes = {line["model"]: float(line["parameters"]) for line in trials[1].chosen() if "parameters" in line}
    parts.append(
        cells(
            "parameters (attributes), thousands",
            constants({name: size / 1000 for name, size in sizes.items()}, asked),
        )
    )
    took = times(context, (*PUBLISHED, *ORDER))
    findings.append(frugal(trials, took))
    for half, values in took.items():
        parts.append(cells(f"{half} time, GL-net's forward pass = 1", constants(values, asked)))
    notes = [
        described(context.budget, authors=False),
        (
            "Models of others are ported from their authors' code where there is some (docs/methods.md), and trained"
            " as the others here are, not by their authors' schedules. DSiRe fits nothing; spectral statistics are"
            " read linearly. MVProbe and ProbeX read one module, a quarter, a half or three quarters along the LoRA,"
            " which is searched in place of dropout. Normalised inputs are searched for the five alone: the others"
            " have them as they are, and TuckerNet the weight of its directions (1 or 0.1) instead. W2T was not asked"
            " about the CLIP score; MLP + Dense was, at the first five folds alone. The best of the published models is"
            " judged on the splits of the table, its interval widened for how many it is picked from and for the"
            " questions."
        ),
        (
            "Times: of every model in its default shape (GL-net: width 16, not as searched), medians for one LoRA of"
            f" {TIMED.layers} modules of {TIMED.n} × {TIMED.m} at rank {TIMED.r}, synthetic factors, batches of 16, in"
            " one run beside other work. Preprocessing is done once for a LoRA, the forward pass every time."
        ),
        UNSEEN_NOTE,
    ]
    place = {model.title: i for i, model in enumerate(COMPARED.values())}
    table = pd.concat(parts).sort_values(
        "row", key=lambda rows: rows.map(place).fillna(len(place)), kind="stable", ignore_index=True
    )  # a model that the first column does not have stands among the others all the same
    return Result(
        "models", TITLE, table, findings, notes, chart(table, "attributes, accuracy"), settings(trials, budget)
    )


def unseen(context: Context, question: Question, score: str) -> pd.DataFrame:
    """Scores at each of the seeds that were not looked at while TuckerNet was made (at all there
    are in a small run, and of folds): columns tucker, gl_net.
    """
    whole = context.small or question.folded
    both = context.trials(question, ("tucker", "gl_net"), None if whole else SEEN + UNSEEN)
    table = by_split(both, score, "tucker", "gl_net")
    return table if whole else table[table.index >= SEEN]


def beats(trials: Trials, judged: pd.DataFrame, column: str, score: str) -> Finding:
    """Whether TuckerNet is above GL-net at the unseen seeds, and how it stands to all in the table."""
    gaps = judged["tucker"] - judged["gl_net"]
    gap, ours, theirs = (
        over_seeds(values.tolist(), trials.test_share, among)
        for values, among in ((gaps, len(ASKED)), (judged["tucker"], 1), (judged["gl_net"], 1))
    )
    apart = ours.low > theirs.high or theirs.low > ours.high
    means = intervals(trials, score)["mean"]
    each = "" if trials.question.folded else f" (each: {', '.join(f'{value:+.3f}' for value in gaps)})"
    others = means[[model.title for name, model in COMPARED.items() if name in trials.variants and name != "tucker"]]
    return Finding(
        f"TuckerNet is above GL-net: {column}.",
        verdict(gap),
        f"at {'folds' if trials.question.folded else 'seeds'} {judged.index.min()} to {judged.index.max()}"
        f" {ours.value:.3f} ({ours.low:.3f} to {ours.high:.3f})"
        f" against {theirs.value:.3f} ({theirs.low:.3f} to {theirs.high:.3f}), intervals that"
        f" {'do not overlap' if apart else 'overlap'}; on the same splits the difference is {with_interval(gap)}{each}."
        f" In the table {means['TuckerNet']:.3f} against"
        f" {means['GL-net']:.3f}; the best of the others is {others.idxmax()} with {others.max():.3f}, the product"
        f" kernel has {means['product kernel']:.3f}.",
        in_paper=False,
    )


def _best_of_others(trials: Trials, column: str, score: str, published: Sequence[str]) -> Finding:
    best = best_rival(trials, score, published)
    gap = differences(trials, score, best, "gl_net", among=len(published) * len(ASKED))
    means = intervals(trials, score)["mean"]
    return Finding(
        f"The best of the models of others is above GL-net: {column}.",
        verdict(gap),
        f"{PUBLISHED[best].title} {means[PUBLISHED[best].title]:.3f} against {means['GL-net']:.3f}; on the same splits"
        f" {with_interval(gap)}, as one picked from {len(published)}, of {len(ASKED)} questions.",
        in_paper=False,
    )


def frugal(trials: list[Trials], took: dict[str, dict[str, float]]) -> Finding:
    """Whether TuckerNet has no more parameters than GL-net on any question, and at most twice its forward time."""
    sizes = pd.DataFrame(
        [(line["model"], t.question.name, line.get("parameters")) for t in trials for line in t.chosen()],
        columns=["model", "question", "size"],
    )
    table = (
        sizes.dropna()
        .drop_duplicates(["model", "question"])
        .pivot_table(index="question", columns="model", values="size")
    )
    share = (table["tucker"] / table["gl_net"]).max()
    forward, preprocess = took["forward"]["tucker"], took["preprocess"]["tucker"]
    return Finding(
        "TuckerNet has no more parameters than GL-net, and at most twice its forward time.",
        Holds.YES if share <= 1 and forward <= 2 else Holds.NO,
        f"at most {share:.0%} of its parameters on any question, and {forward:.2f} times its forward time; its"
        f" preprocessing, once for a LoRA, takes {preprocess:.1f} of GL-net's forward passes.",
        in_paper=False,
    )


def constants(values: dict[str, float], rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers without a spread, by the models' titles, for those in `rows`."""
    measured = {COMPARED[name].title: (value, np.nan) for name, value in values.items() if name in set(rows["model"])}
    return pd.DataFrame.from_dict(measured, orient="index", columns=["mean", "std"])


def times(context: Context, compared: Sequence[str]) -> dict[str, dict[str, float]]:
    """ "preprocess" and "forward" → model → time for one LoRA in units of GL-net's forward pass. A search for the
    nearest depends on how many LoRAs are known.
    """
    device, measured = find_device("cpu"), {}
    for name in compared:
        if not COMPARED[name].memorizes:
            context.reporter.show(f"Timing {COMPARED[name].title}", 1.0)
            measured[name] = time_model(
                name, TIMED, 2 if context.small else 16, device, at_least=0.01 if context.small else 0.5
            )
    unit = measured["gl_net"].forward
    return {
        half: {name: getattr(time, half) / unit for name, time in measured.items()}
        for half in ("preprocess", "forward")
    }
