"""What each part of TuckerNet buys: the model without it, tuned and split as the whole is."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from lol_core.experiments.comparison import cells, chart, described, differences, intervals, settings
from lol_core.experiments.context import Context
from lol_core.experiments.models import ASKED
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.search import Variant
from lol_core.experiments.table2 import FOLDED_QUESTION
from lol_core.experiments.table2 import QUESTION as CLIP_QUESTION
from lol_core.learning.models.tucker import Part

TITLE = "TuckerNet without each of its parts"
COLUMNS = ("CLIP score, τ", "attributes, accuracy", "classes, accuracy", "sources, accuracy", "validation loss, R²")
SEEDS = 5
MEANT = {
    Part.SECOND_ORDER: "the covariances D Dᵀ and Dᵀ D",
    Part.FIRST_ORDER: "the products Φᵀ D Ψ",
    Part.SIZES: "‖ΔW‖ and the spectra, and the MLP over them",
    Part.UNIT_NORM: "the division of ΔW by its norm",
    Part.TRAINING_BASIS: "bases from the training LoRAs (random ones instead)",
    Part.LINEAR_READING: "the linear reading of the directions (an MLP over everything instead)",
}


def without(part: Part) -> Variant:
    options = (("parts", frozenset(Part) - {part}),)
    return Variant("tucker", f"tucker, without {part}", f"TuckerNet, without {part}", options)


VARIANTS: tuple[str | Variant, ...] = ("tucker", *map(without, Part))


def run(context: Context) -> Result:
    context = context.by_halving()
    seeds = 1 if context.small else max(SEEDS, context.budget.seeds)
    trials_of = {}
    for column in COLUMNS[: 1 if context.small else None]:
        question = ASKED[column][0]
        question = FOLDED_QUESTION if question is CLIP_QUESTION else question
        trials_of[column] = context.trials(question, VARIANTS, seeds)
    table = pd.concat(
        [cells(column, intervals(trials, ASKED[column][1])) for column, trials in trials_of.items()], ignore_index=True
    )
    findings = []
    for part, meaning in MEANT.items():
        gaps = {
            column: differences(trials, ASKED[column][1], "tucker", without(part).name, among=len(trials_of))
            for column, trials in trials_of.items()
        }
        best = max(gaps, key=lambda column: gaps[column].low)
        findings.append(
            Finding(
                f"Something is lost without {meaning}.",
                verdict(gaps[best]),
                f"what the part buys: {'; '.join(f'{column} {with_interval(gap)}' for column, gap in gaps.items())}.",
                in_paper=False,
            )
        )
    notes = [
        described(context.budget, authors=False),
        (
            "Every row has a search of its own; the weight of TuckerNet's directions (1 or 0.1) is searched in place of"
            " normalised inputs. The verdict is of the question on which the part buys most surely, so the"
            f" {len(trials_of)} intervals of a part are widened to hold together (Bonferroni). At {seeds} splits and"
            f" {seeds - 1} degrees of freedom (CLIP score: 25 folds) only what is large and steady can be clear; a"
            " minus says that the model is better without. TuckerNet's parts were chosen with the test scores of seeds"
            " 0 and 1 of these in sight, which flatters what they buy."
        ),
    ]
    return Result(
        "ablation",
        TITLE,
        table,
        findings,
        notes,
        chart(table, COLUMNS[0]),
        settings(list(trials_of.values()), replace(context.budget, seeds=seeds)),
    )
