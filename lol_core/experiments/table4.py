"""Table 4 and appendix D.3: how many pictures a LoRA was trained on, and by what strategy a model could know."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from lol_core.experiments.comparison import (
    PICKED,
    Papers,
    cells,
    chart,
    described,
    differences,
    intervals,
    least_clear,
    settings,
    summary,
)
from lol_core.experiments.context import Context
from lol_core.experiments.paper import FIVE
from lol_core.experiments.question import Question
from lol_core.experiments.result import Finding, Result, alike, verdict, weakest, with_interval
from lol_core.experiments.table3 import CLASSES, CLASSES_QUESTION, models_of
from lol_core.experiments.trials import Trials
from lol_core.learning.tasks import Multiclass
from lol_core.learning.verdict import Difference, over_seeds

TITLE = "Table 4: data-set size on Emojinette, and appendix D.3"
SIZE_QUESTION = Question("emojinette-size", "emojinette", ("n_images",), Multiclass)
TRAIN_LOSS: Papers = {
    "mlp": (0.439, 0.030),
    "o_align": (0.014, 0.004),
    "svd": (0.082, 0.010),
    "dense": (0.382, 0.119),
    "gl_net": (0.005, 0.003),
}
ACCURACY: Papers = {
    "mlp": (0.209, 0.031),
    "o_align": (0.352, 0.021),
    "svd": (0.731, 0.016),
    "dense": (0.316, 0.043),
    "gl_net": (0.468, 0.021),
}
SUM: Papers = {"gl_net": (0.435, 0.021)}
FORMULA: Papers = {"gl_net": (0.461, np.nan), "svd": (0.21, np.nan)}


def size_accuracy(p: float, sizes: np.ndarray) -> float:
    """Equation (38): how often the sum of class predictions, each right with probability p, is the size, over the given
    distribution of sizes.

    sizes: P(η) for η = 0 … k classes, (k + 1,).
    """
    from scipy.stats import binom  # takes a second to import

    k = len(sizes) - 1
    total = 0.0
    for size, probability in enumerate(sizes):
        wrong = np.arange(k + 1)
        total += probability * float((binom.pmf(wrong, size, 1 - p) * binom.pmf(wrong, k - size, 1 - p)).sum())
    return total


LEAD = round(ACCURACY["svd"][0] - ACCURACY["gl_net"][0], 3)
"""Of MLP + SVD over the next in the paper."""
MARGIN = 0.05
"""Accuracies that differ by less are called alike."""


def by_seed(trials: Trials, score: str, model: str) -> pd.Series:
    table = trials.table()
    return table[table["model"] == model].set_index("seed")[score]


def run(context: Context) -> Result:
    ours, classes = (
        context.trials(SIZE_QUESTION),
        context.trials(CLASSES_QUESTION, models_of(context, CLASSES_QUESTION)),
    )
    counts = ours.zoo.labels["n_images"].value_counts(normalize=True)
    sizes = np.array([counts.get(size, 0.0) for size in range(len(CLASSES) + 1)])
    formula = summary(classes, "accuracy")[["mean"]].assign(std=np.nan)
    formula["mean"] = [size_accuracy(p, sizes) if not np.isnan(p) else np.nan for p in formula["mean"]]
    table = pd.concat(
        [
            cells("train loss", intervals(ours, "train loss"), TRAIN_LOSS),
            cells("accuracy", intervals(ours, "accuracy"), ACCURACY),
            cells("sum of predicted classes", intervals(classes, "sum of classes"), SUM),
            cells("equation (38)", formula, FORMULA),
        ],
        ignore_index=True,
    )
    accuracy = summary(ours, "accuracy")["mean"]
    rival, gap = least_clear(ours, "accuracy", "svd", list(FIVE))
    glnet, summed, expected = (
        accuracy["GL-net"],
        summary(classes, "sum of classes")["mean"]["GL-net"],
        formula["mean"]["GL-net"],
    )
    svd_formula = formula["mean"]["MLP + SVD"]
    above = {name: differences(ours, "accuracy", name, "constant") for name in ("gl_net", "svd")}
    by_sum = over_seeds(
        (by_seed(ours, "accuracy", "gl_net") - by_seed(classes, "sum of classes", "gl_net")).tolist(), ours.test_share
    )
    by_formula, beyond_classes = (
        over_seeds(
            (
                by_seed(ours, "accuracy", name)
                - by_seed(classes, "accuracy", name).map(partial(size_accuracy, sizes=sizes))
            ).tolist(),
            ours.test_share,
        )
        for name in ("gl_net", "svd")
    )
    findings = [
        Finding(
            "MLP + SVD predicts the size best of the five.",
            verdict(gap),
            f"{accuracy['MLP + SVD']:.3f}; {FIVE[rival].title}, which decides it, has"
            f" {accuracy[FIVE[rival].title]:.3f} (difference {with_interval(gap)}); a constant has"
            f" {accuracy['control: constant']:.3f}, norms {accuracy['control: norms only']:.3f}.",
        ),
        Finding(
            f"It does so by far (in the paper by {LEAD}).",
            verdict(Difference(gap.value - LEAD, gap.low - LEAD, gap.high - LEAD)),
            f"that lead is at most {gap.high:+.3f}.",
        ),
        Finding(
            "GL-net is about as good as if it added up the classes it finds (equation 38, and the sum itself).",
            weakest([alike(by_sum, MARGIN), alike(by_formula, MARGIN), verdict(above["gl_net"])]),
            f"trained for the size {glnet:.3f}, sum of its classes {summed:.3f} (difference {with_interval(by_sum)}),"
            f" equation (38) at its class accuracy {expected:.3f} (difference {with_interval(by_formula)}; alike is"
            f" within {MARGIN}); above a constant it is by {with_interval(above['gl_net'])}, and only there would that"
            " agreement say something.",
        ),
        Finding(
            "MLP + SVD is far above what its classes would give, so it uses something else.",
            weakest([verdict(above["svd"]), verdict(beyond_classes)]),
            f"{accuracy['MLP + SVD']:.3f}, {with_interval(beyond_classes)} above the {svd_formula:.3f} of equation"
            f" (38), which a constant ({accuracy['control: constant']:.3f}) exceeds too; above the constant it is by"
            f" {with_interval(above['svd'])}.",
        ),
    ]
    notes = [
        described(context.budget)
        + (
            " There is no script of the authors for the size: their rows are of models of the classes."
            if context.searched
            else ""
        ),
        PICKED,
        (
            "The size is one of ten classes here (softmax, cross-entropy). Every nonempty subset of the ten classes"
            " occurs once, so the most frequent size, five, has a quarter of the LoRAs."
        ),
        (
            "Steps and learning rate are the same for every size, as in the paper. Norms of the updates do no better"
            " than a constant, within the spread. Why the size leaves so little trace in this zoo has not been tested."
        ),
    ]
    return Result(
        "table4", TITLE, table, findings, notes, chart(table, "accuracy"), settings([ours, classes], context.budget)
    )
