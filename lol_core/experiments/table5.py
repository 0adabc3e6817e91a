"""Table 5: a language model's LoRAs: the sources they saw, their validation loss, their accuracy."""

from __future__ import annotations

import pandas as pd

from lol_core.experiments.comparison import SEARCH, Papers, best_rival, cells, chart, differences, settings, summary
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, verdict
from lol_core.experiments.trials import Context, Question

TITLE = "Table 5: a sentence encoder's LoRAs (glosses)"
SOURCES = (
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "object",
    "plant",
    "possession",
    "quantity",
    "state",
    "substance",
    "time",
)
SOURCES_QUESTION = Question("glosses-sources", "glosses", tuple(f"saw noun.{name}" for name in SOURCES))
LOSS_QUESTION = Question("glosses-validation-loss", "glosses", ("validation_loss",))
ACCURACY_QUESTION = Question("glosses-accuracy", "glosses", ("accuracy",))
QUESTIONS = (SOURCES_QUESTION, LOSS_QUESTION, ACCURACY_QUESTION)
SOURCES_PAPER: Papers = {
    "mlp": (0.516, 0.006),
    "o_align": (0.550, 0.016),
    "svd": (0.551, 0.001),
    "dense": (0.625, 0.008),
    "gl_net": (0.605, 0.007),
}
LOSS_PAPER: Papers = {
    "mlp": (0.113, 0.059),
    "o_align": (0.821, 0.078),
    "svd": (0.999, 0.0),
    "dense": (0.987, 0.003),
    "gl_net": (0.998, 0.0),
}
ACCURACY_PAPER: Papers = {
    "mlp": (0.107, 0.035),
    "o_align": (0.965, 0.004),
    "svd": (0.983, 0.002),
    "dense": (0.981, 0.002),
    "gl_net": (0.987, 0.001),
}


def run(context: Context) -> Result:
    sources, loss, accuracy = (context.trials(question) for question in QUESTIONS)
    table = pd.concat(
        [
            cells("sources seen: accuracy", summary(sources, "accuracy"), SOURCES_PAPER),
            cells("validation loss: R²", summary(loss, "r2"), LOSS_PAPER),
            cells("accuracy: R²", summary(accuracy, "r2"), ACCURACY_PAPER),
        ],
        ignore_index=True,
    )
    findings = []
    for measure, trial in (("the validation loss", loss), ("the accuracy", accuracy)):
        means = summary(trial, "r2")["mean"]
        good = [FIVE[name].title for name in FIVE if means[FIVE[name].title] >= 0.98]
        gap, error = differences(trial, "r2", best_rival(trial, "r2", list(FIVE)), "norms only")
        findings.append(
            Finding(
                f"Several models predict {measure} almost perfectly (R² of .98 and more).",
                "holds" if len(good) > 1 else "does not hold",
                f"{', '.join(good) or 'none'} reach .98; norms alone {means['control: norms only']:.3f}, the best model"
                f" {gap:+.3f} ± {error:.3f} above them.",
            )
        )
        poor = min(FIVE, key=lambda name: means[FIVE[name].title])
        findings.append(
            Finding(
                f"A plain MLP predicts {measure} hardly at all.",
                "holds" if poor == "mlp" and means["MLP"] < 0.3 else "does not hold",
                f"R² {means['MLP']:.3f}.",
            )
        )
    means = summary(sources, "accuracy")["mean"]
    best = best_rival(sources, "accuracy", list(FIVE))
    gap, error = differences(sources, "accuracy", best, "constant")
    findings.append(
        Finding(
            "Which sources were seen can be told above chance.",
            verdict(gap, error),
            f"{FIVE[best].title} {means[FIVE[best].title]:.3f}, a constant {means['control: constant']:.3f}, "
            f"the product kernel {means['product kernel']:.3f}.",
        )
    )
    notes = [
        SEARCH,
        (
            "glosses has 318 LoRAs of a sentence encoder trained on definitions from twenty sources (the paper: 2,000"
            " of Qwen2-1.5B on nineteen sources of ARC)."
        ),
        (
            "Likely why fewer models are near perfect: 318 LoRAs in all, where the paper has 2,000. Another size was"
            " not tried. The order of the models differs too: in the paper MLP + SVD is first for the loss and GL-net"
            " for the accuracy."
        ),
    ]
    return Result(
        "table5",
        TITLE,
        table,
        findings,
        notes,
        chart(table, "sources seen: accuracy"),
        settings([sources, loss, accuracy], context.budget),
    )
