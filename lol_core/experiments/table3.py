"""Table 3: what a LoRA was trained on: attributes of the person, classes of the pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lol_core.collections.layouts.learning_on_loras import ATTRIBUTES, BITS
from lol_core.experiments import authors
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
from lol_core.experiments.result import Finding, Result, verdict, weakest, with_interval
from lol_core.experiments.search import Variant

TITLE = "Table 3: attributes on Faces, class presence on Emojinette"
CLASSES = ("cassette", "church", "dog", "fish", "fuel pump", "golf flag", "horn", "parachute", "saw", "truck")


def sum_of_classes(truth: pd.DataFrame, predicted: np.ndarray) -> dict[str, float]:
    """How often the number of classes predicted present is the number present (appendix D.3, f_size)."""
    present = truth.to_numpy(float).sum(1)
    return {"sum of classes": float(((predicted > 0.5).sum(1) == present).mean())}


ATTRIBUTES_QUESTION = Question(
    "faces-attributes", "faces", ("Eyeglasses", "Wearing_Hat", "Smiling", "Beard", "Long_Hair"), elsewhere=ATTRIBUTES
)
CLASSES_QUESTION = Question(
    "emojinette-classes", "emojinette", tuple(f"has {name}" for name in CLASSES), extra=sum_of_classes, elsewhere=BITS
)
QUESTIONS = (ATTRIBUTES_QUESTION, CLASSES_QUESTION)
PAPERS: dict[str, dict[str, Papers]] = {
    "attributes": {
        "train loss": {
            "mlp": (0.551, 0.0),
            "o_align": (0.074, 0.022),
            "svd": (0.490, 0.015),
            "dense": (0.131, 0.018),
            "gl_net": (0.064, 0.008),
        },
        "test loss": {
            "mlp": (0.554, 0.0),
            "o_align": (0.333, 0.008),
            "svd": (0.509, 0.013),
            "dense": (0.267, 0.007),
            "gl_net": (0.232, 0.007),
        },
        "accuracy": {
            "mlp": (0.724, 0.0),
            "o_align": (0.872, 0.005),
            "svd": (0.773, 0.013),
            "dense": (0.891, 0.004),
            "gl_net": (0.913, 0.001),
        },
    },
    "classes": {
        "train loss": {
            "mlp": (0.582, 0.004),
            "o_align": (0.002, 0.001),
            "svd": (0.581, 0.013),
            "dense": (0.019, 0.001),
            "gl_net": (0.019, 0.0),
        },
        "test loss": {
            "mlp": (0.709, 0.004),
            "o_align": (0.278, 0.008),
            "svd": (0.638, 0.013),
            "dense": (0.264, 0.011),
            "gl_net": (0.244, 0.005),
        },
        "accuracy": {
            "mlp": (0.496, 0.013),
            "o_align": (0.878, 0.003),
            "svd": (0.656, 0.006),
            "dense": (0.889, 0.006),
            "gl_net": (0.904, 0.003),
        },
    },
}


ZOOS = (
    "Faces: five drawn attributes of 1,000 persons (the paper: five attributes of CelebA, 3,900 persons). Emojinette:"
    " ten drawn classes, 1,023 LoRAs of rank 16 (the paper: Imagenette, 2,046 of rank 32). A class has 24 pictures, of"
    " which each LoRA saw one, so that a picture stands in about 21 LoRAs and in every part of a split. A constant"
    " predicts the training part's commoner answer; where answers are about as common, the test part's rarer one is it"
    " as often, and chance is 0.5 all the same."
)
STARTS = (
    "How poorly a plain MLP does hangs on where A began: of LoRAs that all began at one start it tells the classes with"
    " 0.700 in place of 0.514 ([from one start](results.md)), where these, as the paper's, each have their own."
)
ONE_SHAPE = (
    "Every model has the same small shape here (two hidden layers of 64; GL-net of equivariant width 16), where the"
    " authors give each its own. Ridge regression on the product kernel, linear in the whole of ΔW and from the same"
    " training LoRAs, has a higher mean accuracy on the classes than any of the five."
)


def models_of(context: Context, question: Question) -> tuple[str | Variant, ...]:
    """The five, and where they are searched the five as their authors set them."""
    stated = {ATTRIBUTES_QUESTION.name: authors.ATTRIBUTES, CLASSES_QUESTION.name: authors.CLASSES}[question.name]
    return (*FIVE, *authors.variants(stated)) if context.searched else tuple(FIVE)


def run(context: Context) -> Result:
    parts, findings = [], []
    askable = context.askable(QUESTIONS)
    for question in askable:
        name = "attributes" if question is ATTRIBUTES_QUESTION else "classes"
        ours = context.trials(question, models_of(context, question))
        for column, papers in PAPERS[name].items():
            parts.append(cells(f"{name}: {column}", intervals(ours, column), papers))
        accuracy = summary(ours, "accuracy")["mean"]
        rival, gap = least_clear(ours, "accuracy", "gl_net", list(FIVE))
        findings.append(
            Finding(
                f"GL-net predicts {name} best of the five.",
                verdict(gap),
                f"accuracy {accuracy['GL-net']:.3f}; {FIVE[rival].title}, which decides it, has"
                f" {accuracy[FIVE[rival].title]:.3f} (difference {with_interval(gap)}).",
            )
        )
        if context.searched:
            findings.append(authors.best_at_their_settings(ours, "gl_net", f"predicts {name}"))
        good, poor = ("o_align", "dense", "gl_net"), ("mlp", "svd")
        gaps = {model: least_clear(ours, "accuracy", model, poor) for model in good}
        least = min(good, key=lambda model: gaps[model][1].low)
        findings.append(
            Finding(
                f"MLP and MLP + SVD have trouble with {name}, and only they.",
                weakest(verdict(gap) for _, gap in gaps.values()),
                f"MLP {accuracy['MLP']:.3f}, SVD {accuracy['MLP + SVD']:.3f}; the least clear difference is that of"
                f" {FIVE[least].title} ({accuracy[FIVE[least].title]:.3f}) from {FIVE[gaps[least][0]].title},"
                f" {with_interval(gaps[least][1])}; a constant {accuracy['control: constant']:.3f}.",
            )
        )
        kernel = differences(ours, "accuracy", "gl_net", "product kernel")
        findings.append(
            Finding(
                f"Does GL-net predict {name} better than ridge regression on the product kernel?",
                verdict(kernel),
                f"difference in accuracy {with_interval(kernel)}; the norms of the updates reach"
                f" {accuracy['control: norms only']:.3f}.",
                in_paper=False,
            )
        )
    table = pd.concat(parts, ignore_index=True)
    notes = [
        described(context.budget),
        PICKED,
        *([ZOOS, STARTS] if context.zoo is None else []),
        *([ONE_SHAPE] if context.zoo is None and not context.searched else []),
    ]
    return Result(
        "table3",
        TITLE,
        table,
        findings,
        notes,
        chart(table, "classes: accuracy" if CLASSES_QUESTION in askable else "attributes: accuracy"),
        settings([context.trials(question, models_of(context, question)) for question in askable], context.budget),
    )
