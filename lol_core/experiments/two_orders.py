"""Whether a kernel of ΔW, of ΔWΔWᵀ and of sizes, all in closed form, tells what the searched models tell."""

from __future__ import annotations

import pandas as pd

from lol_core.errors import DataMissingError
from lol_core.experiments.comparison import INTERVAL, by_split, cells, chart, halved, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.holdout import NEW, aimed_at, frozen_before
from lol_core.experiments.holdout_readings import (
    CONSTANT,
    NORMS,
    RIVALS,
    SECOND,
    STAND_INS,
    TRAININGS,
    Readings,
    measured,
)
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, weakest, with_interval
from lol_core.experiments.search import TWO_ORDERS
from lol_core.experiments.table2 import FOLDED_QUESTION
from lol_core.experiments.table2 import QUESTION as CLIP_QUESTION
from lol_core.experiments.trials import KERNEL
from lol_core.learning.verdict import over_seeds

TITLE = "Two-order kernel: ΔW, ΔWΔWᵀ and sizes in closed form"
NAME = TWO_ORDERS.name
OTHERS = {
    "gl_net": "the searched GL-net",
    KERNEL: "the product kernel",
    "norms only": "the norms",
    "tucker": "TuckerNet",
}


def run(context: Context) -> Result:
    context = context.by_halving()
    parts, findings, trials = [], [], []
    columns = dict(list(ASKED.items())[: 2 if context.small else None])
    for column, (question, score) in columns.items():
        question = FOLDED_QUESTION if question is CLIP_QUESTION else question
        more = () if context.small else ("tucker",)
        asked = context.trials(question, ("gl_net", *more, TWO_ORDERS))
        trials.append(asked)
        parts.append(cells(column, intervals(asked, score)))
        names = ("gl_net", KERNEL, "norms only", *more)
        findings.append(judged(column, by_split(asked, score, NAME, *names), asked.test_share, len(columns)))
    table = pd.concat(parts, ignore_index=True)
    readings = afterwards(context)
    if readings is not None:
        findings += [above(readings, column) for column in readings.of if NAME in readings.of[column]]
        findings += [
            aimed_at(readings, NAME, "On LoRAs younger than it the two-order kernel", way) for way in (False, True)
        ]
    shown = chart(table, next(iter(columns)))
    return Result(NAME, TITLE, table, findings, notes(context, readings), shown, settings(trials, context.budget))


def judged(column: str, scores: pd.DataFrame, test_share: float, among: int) -> Finding:
    """scores: split × model."""
    gaps = {
        OTHERS[str(name)]: over_seeds((scores[NAME] - scores[name]).tolist(), test_share, among)
        for name in scores.columns
        if name != NAME
    }
    rivals = [gaps[OTHERS[name]] for name in ("gl_net", KERNEL)]
    words = ", ".join(f"{title} by {with_interval(gap)}" for title, gap in gaps.items())
    return Finding(
        f"The two-order kernel is above the searched GL-net and the product kernel: {column}.",
        weakest(verdict(gap) for gap in rivals),
        f"{scores[NAME].mean():.3f}; it exceeds {words}.",
        in_paper=False,
    )


def afterwards(context: Context) -> Readings | None:
    """What it and its rivals predict of LoRAs that are younger than it; None where none were ever made."""
    try:
        return measured(context, SECOND)
    except DataMissingError:
        return None


def above(readings: Readings, column: str) -> Finding:
    """Whether it is above each rival on held-out LoRAs."""
    gaps = {title: readings.apart(column, NAME, name, len(ASKED) * len(RIVALS)) for name, title in RIVALS.items()} | {
        "TuckerNet": readings.apart(column, NAME, "tucker", len(ASKED))
    }
    own, norms = readings.score(column, NAME), readings.apart(column, NAME, NORMS)
    return Finding(
        f"On LoRAs younger than it the two-order kernel is above GL-net and the product kernel: {column}.",
        weakest(verdict(gaps[title]) for title in RIVALS.values()),
        f"{own.value:.3f} ({own.low:.3f} to {own.high:.3f});"
        f" {'; '.join(f'{title} {with_interval(gap)}' for title, gap in gaps.items())}. Above norms alone by"
        f" {with_interval(norms)}, not widened; a constant has {readings.score(column, CONSTANT).value:.3f}.",
        in_paper=False,
    )


def notes(context: Context, readings: Readings | None) -> list[str]:
    return [
        "k = d + β s + β d s, where d is the mean over modules of ⟨ΔW, ΔW′⟩, of ⟨ΔWΔWᵀ, ΔW′ΔW′ᵀ⟩ or of both, each over"
        " its norms, and s = exp(−γ |x − x′|² / dim x) of x = log ‖ΔW‖ of every module, standardised"
        " (docs/two_orders.md). Which of the three, β (0.1, 1, 10), γ (0.03, 0.3, 3) and the ridge (1e-4 to 100) have"
        " the lowest squared leave-one-out error of the training LoRAs alone, in closed form; validation LoRAs are not"
        " read.",
        "Its form was found on these splits of these zoos, after TuckerNet and ridge regression on ΔWΔWᵀ had been seen"
        " to be ahead ([second order](results.md)): what it scores here is of a model shaped on its test LoRAs.",
        younger(context, readings),
        f"{INTERVAL} Intervals of differences are widened for {len(ASKED)} questions (Bonferroni); on LoRAs younger"
        f" than it, where they are of a bootstrap over LoRAs and trainings, for {len(ASKED) * len(RIVALS)} (TuckerNet"
        f" {len(ASKED)}).",
        f"In the table GL-net and TuckerNet were searched. {halved(context.budget)}",
    ]


def younger(context: Context, readings: Readings | None) -> str:
    """What the LoRAs are that it was asked about afterwards."""
    if readings is None:
        return f"LoRAs younger than it were not asked about: {SECOND.command} makes them."
    if context.small:
        return f"The LoRAs called younger are {STAND_INS} of a sample zoo, and not new."
    made = ", ".join(f"{zoo['LoRAs']} {name} {zoo['fingerprint']}" for name, zoo in readings.zoos.items())
    return (
        f"LoRAs younger than it are made by {SECOND.command} by the recipes of the sample zoos, and not committed:"
        f" {made}. {NEW} {frozen_before(context, readings, SECOND)} It, GL-net and TuckerNet by the small grid"
        " (learning rate and normalised inputs alone; this GL-net has width 16 and a head of 2 × 64, and is not the one"
        " of the table above, which was not asked about them), GL-net of width 64 with one setting, each trained on"
        f" {TRAININGS} splits of the committed zoo (their test parts are not used), and the product kernel were asked"
        " once. Ridge regression on ΔWΔWᵀ alone, from which its second order comes, tells the sources of the committed"
        " zoo as well (0.988; second order); it was not asked about these."
    )
