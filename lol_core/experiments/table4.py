"""Table 4 and appendix D.3: how many pictures a LoRA was trained on, and by what strategy a model could know."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lol_core.experiments.comparison import SEARCH, Papers, cells, chart, differences, settings, summary
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, verdict
from lol_core.experiments.table3 import CLASSES, CLASSES_QUESTION
from lol_core.experiments.trials import Context, Question
from lol_core.learning.tasks import Multiclass

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


def run(context: Context) -> Result:
    ours, classes = context.trials(SIZE_QUESTION), context.trials(CLASSES_QUESTION)
    counts = ours.zoo.labels["n_images"].value_counts(normalize=True)
    sizes = np.array([counts.get(size, 0.0) for size in range(len(CLASSES) + 1)])
    formula = summary(classes, "accuracy")[["mean"]].assign(std=np.nan)
    formula["mean"] = [size_accuracy(p, sizes) if not np.isnan(p) else np.nan for p in formula["mean"]]
    table = pd.concat(
        [
            cells("train loss", summary(ours, "train loss"), TRAIN_LOSS),
            cells("accuracy", summary(ours, "accuracy"), ACCURACY),
            cells("sum of predicted classes", summary(classes, "sum of classes"), SUM),
            cells("equation (38)", formula, FORMULA),
        ],
        ignore_index=True,
    )
    accuracy = summary(ours, "accuracy")["mean"]
    rival = max((name for name in FIVE if name != "svd"), key=lambda name: accuracy[FIVE[name].title])
    gap, error = differences(ours, "accuracy", "svd", rival)
    glnet, summed, expected = (
        accuracy["GL-net"],
        summary(classes, "sum of classes")["mean"]["GL-net"],
        formula["mean"]["GL-net"],
    )
    svd_formula = formula["mean"]["MLP + SVD"]
    above = {name: differences(ours, "accuracy", name, "constant") for name in ("gl_net", "svd")}
    agreement = "holds" if abs(glnet - expected) <= 0.05 and abs(glnet - summed) <= 0.05 else "does not hold"
    findings = [
        Finding(
            "MLP + SVD predicts the size best, by far.",
            verdict(gap, error),
            f"{accuracy['MLP + SVD']:.3f}; the best of the others is {FIVE[rival].title} with"
            f" {accuracy[FIVE[rival].title]:.3f}; a constant has {accuracy['control: constant']:.3f}, norms"
            f" {accuracy['control: norms only']:.3f}.",
        ),
        Finding(
            "GL-net is about as good as if it added up the classes it finds (equation 38, and the sum itself).",
            agreement if verdict(*above["gl_net"]) == "holds" or agreement == "does not hold" else "holds, not clearly",
            f"trained for the size {glnet:.3f}, sum of its classes {summed:.3f}, equation (38) at its class accuracy"
            f" {expected:.3f}; but a constant has {accuracy['control: constant']:.3f}, so that agreement says something"
            " only above that.",
        ),
        Finding(
            "MLP + SVD is far above what its classes would give, so it uses something else.",
            verdict(*above["svd"]) if accuracy["MLP + SVD"] > svd_formula + 0.1 else "does not hold",
            f"{accuracy['MLP + SVD']:.3f} against {svd_formula:.3f} by equation (38), which a constant"
            f" ({accuracy['control: constant']:.3f}) exceeds too; above the constant it is by {above['svd'][0]:+.3f} ±"
            f" {above['svd'][1]:.3f}.",
        ),
    ]
    notes = [
        SEARCH,
        (
            "The size is one of ten classes here (softmax, cross-entropy). Every nonempty subset of the ten classes"
            " occurs once, so the most frequent size, five, has a quarter of the LoRAs."
        ),
        (
            "Likely why no model is far above a constant: as in the paper, steps and learning rate are the same for"
            " every size, and here the size leaves hardly a trace in the norms of the updates (see the control)."
        ),
    ]
    return Result(
        "table4", TITLE, table, findings, notes, chart(table, "accuracy"), settings([ours, classes], context.budget)
    )
