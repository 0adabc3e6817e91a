"""Why ridge regression on the product kernel tells classes better than GL-net of width 16: the same regression on what
GL-net's equivariant layers keep, untrained and trained, and on ΔW with and without its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.core.batch import Batch, WeightSpec
from lol_core.core.progress import Reporter
from lol_core.experiments.comparison import (
    INTERVAL,
    SHUFFLING,
    by_split,
    cells,
    chart,
    differences,
    intervals,
    settings,
    with_half_widths,
)
from lol_core.experiments.context import Context
from lol_core.experiments.curve import SETTING, WIDE, one_setting
from lol_core.experiments.kept import Kept
from lol_core.experiments.kernel import kernels
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.search import Setting, Variant
from lol_core.experiments.table3 import CLASSES_QUESTION
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.learning.fit import Fit
from lol_core.learning.models import LoLModel
from lol_core.learning.models.gl_net import GLNet, GLNetConfig, Reading
from lol_core.learning.models.layers import Start
from lol_core.learning.verdict import over_seeds

TITLE = "The kernel's lead on classes: GL-net's layers, its head, or size?"
NARROW, DENSE = Variant.of("gl_net"), Variant.of("dense")
NETS = {16: NARROW, 64: WIDE}
"""Equivariant width → the GL-net of table 2's grid, that of the learning curves."""
NORMED = replace(
    WIDE,
    name=f"{WIDE.name}, products over their norm",
    title=f"{WIDE.title}, products over their norm",
    options=(("gl_norm", True),),
)
"""The same, by the authors' GL-norm: the head reads Φ ΔW Ψᵀ / ‖Φ ΔW Ψᵀ‖ of every module, each row times a gain."""
HEADS = {
    "module by module": one_setting(64, ", read module by module", reading=Reading.PER_MODULE),
    "by a Transformer over modules": one_setting(64, ", Transformer over modules", reading=Reading.TRANSFORMER),
}
"""How the authors' other two heads read → the GL-net of the learning curves with it."""
DRAWS = 3
"""Untrained GL-nets of a width at each split, whose accuracies are averaged."""
OF_DELTA = {"updates": "ridge: ΔW as it is", "directions": "ridge: ΔW over its norm"}


class Layers(StrEnum):
    """Where Φ and Ψ of the products Φ ΔW Ψᵀ come from."""

    UNTRAINED = "untrained"
    LEADING = "leading directions'"
    TRAINED = "trained"


def row(layers: Layers, width: int) -> str:
    return f"ridge: {layers} products, width {width}"


def unscaled(width: int) -> str:
    return f"{row(Layers.TRAINED, width)}, as they are"


def own_head(width: int) -> str:
    return f"those trained, width {width}: their own head"


def untrained(spec: WeightSpec, width: int, draw: int) -> GLNet:
    """A GL-net at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(draw)
        return GLNet(spec, 1, GLNetConfig(equivariant_width=width))


def leading(sample: Batch, width: int) -> GLNet:
    """A GL-net whose Φ and Ψ are the leading left and right singular directions of LoRAs whose every ΔW has norm 1, as
    in TuckerNet.
    """
    net = GLNet(sample.spec, 1, GLNetConfig(equivariant_width=width, start=Start.LEADING))
    net.prepare(sample, torch.Generator())
    return net


@torch.no_grad()
def products(net: LoLModel, batch: Batch) -> Batch:
    """What GL-net's head reads, Φ ΔW Ψᵀ of every module, as LoRAs of w × w modules, in the order of the groups."""
    last = net.stages(net.normalized(batch))[-1]
    order = [i for _, indices in batch.spec.groups for i in indices]
    modules = tuple(replace(batch.spec.modules[i], n=last.U.shape[-2], m=last.V.shape[-2]) for i in order)
    return Batch(WeightSpec(modules, batch.spec.mixed_ranks), (last.U,), (last.V,), batch.ranks[:, order])


def readings(trials: Trials, seed: int) -> dict[str, Any]:
    """Reading → its accuracy at a split, and the kernels and ridges it picked, one for each draw."""
    fit = trials.prepared(NARROW.name, Setting(1e-3), seed)
    batch, sample = (fit.factors.batch(ids) for ids in (trials.labelled, fit.split["train"]))
    of_delta = kernels(batch)
    seen = {title: [{name: of_delta[name]}] for name, title in OF_DELTA.items()}
    accuracy = {}
    for width, variant in NETS.items():
        trained = trials.refit(variant.name, seed)
        outputs = trained.outputs(trained.split["test"])
        accuracy[own_head(width)] = _accuracy(trained, trained.task.decode(outputs))
        nets: dict[Layers, list[LoLModel]] = {
            Layers.UNTRAINED: [untrained(fit.spec, width, DRAWS * seed + k) for k in range(DRAWS)],
            Layers.LEADING: [leading(sample, width)],
            Layers.TRAINED: [trained.model],
        }
        for layers, each in nets.items():
            seen[row(layers, width)] = [kernels(products(net, batch)) for net in each]
        seen[unscaled(width)] = [{"updates": seen[row(Layers.TRAINED, width)][0]["updates"]}]
    ridges = {name: [_read(trials, fit, matrices) for matrices in draws] for name, draws in seen.items()}
    accuracy |= {name: float(np.mean([score for score, _ in draws])) for name, draws in ridges.items()}
    return {"accuracy": accuracy, "picked": {name: [picked for _, picked in draws] for name, draws in ridges.items()}}


def _read(trials: Trials, fit: Fit, matrices: dict[str, np.ndarray]) -> tuple[float, dict[str, float | str]]:
    """Accuracy of ridge regression, chosen and fitted as for the product kernel."""
    predicted, picked = trials.ridge(fit, matrices)
    return _accuracy(fit, predicted), picked


def _accuracy(fit: Fit, probabilities: np.ndarray) -> float:
    """The mean over test LoRAs and classes: (test, classes)."""
    return float(((probabilities > 0.5) == (fit.encoded["test"].numpy() > 0.5)).mean())


def complete(trials: Trials, kept: Kept, reporter: Reporter) -> list[dict[str, Any]]:
    """A line of readings for each seed; those that are missing are made."""
    for seed in range(trials.budget.seeds):
        if not any(line["seed"] == seed for line in kept.lines()):
            reporter.check("What was measured is kept; the same command goes on.")
            reporter.show(f"Reading the classes at seed {seed}", seed / trials.budget.seeds)
            kept.add(seed=seed, **readings(trials, seed))
    lines = [line for line in kept.lines() if line["seed"] < trials.budget.seeds]
    return sorted(lines, key=lambda line: line["seed"])


def run(context: Context) -> Result:
    trials = context.trials(CLASSES_QUESTION, (DENSE, *NETS.values(), NORMED, *HEADS.values()))
    kept = Kept(context.folder / "lead.jsonl", trials.kept.about | {"draws": DRAWS})
    lines = complete(trials, kept, context.reporter)
    names = [*OF_DELTA.values()]
    names += [
        name
        for width in NETS
        for name in (*(row(layers, width) for layers in Layers), unscaled(width), own_head(width))
    ]
    read = {name: [line["accuracy"][name] for line in lines] for name in names}
    means = pd.concat([intervals(trials, "accuracy"), with_half_widths(read, trials.test_share)])
    table = cells("accuracy", means)
    scores = by_split(trials, "accuracy", KERNEL, *(each.name for each in (DENSE, WIDE, NORMED))).assign(**read)
    about = settings([trials], context.budget) | {"picked": {line["seed"]: line["picked"] for line in lines}}
    judged = findings(scores, trials.test_share) + heads(trials)
    return Result("lead", TITLE, table, judged, notes(), chart(table, "accuracy"), about)


JUDGED: Sequence[tuple[str, Mapping[str, tuple[str, str]]]] = (
    (
        "Ridge regression on the products of the trained GL-net of width 16 is behind the one on all of ΔW.",
        {"by": (KERNEL, row(Layers.TRAINED, 16)), "at width 64 by": (KERNEL, row(Layers.TRAINED, 64))},
    ),
    (
        "Ridge regression on a trained GL-net's products of width 16, each over its norm, is above its own head, which"
        " reads them as they are.",
        {
            "by": (row(Layers.TRAINED, 16), own_head(16)),
            "at width 64 by": (row(Layers.TRAINED, 64), own_head(64)),
            "MLP + Dense, the same head on all of ΔW, is behind the kernel by": (KERNEL, DENSE.name),
        },
    ),
    (
        "On the products as they are it is too.",
        {"by": (unscaled(16), own_head(16)), "at width 64 by": (unscaled(64), own_head(64))},
    ),
    (
        "Ridge regression on an untrained GL-net's products of width 64 is behind the one on all of ΔW.",
        {
            "by": (KERNEL, row(Layers.UNTRAINED, 64)),
            "at width 16 by": (KERNEL, row(Layers.UNTRAINED, 16)),
            "with the 64 leading directions in place of random ones by": (KERNEL, row(Layers.LEADING, 64)),
            "with sixteen by": (KERNEL, row(Layers.LEADING, 16)),
        },
    ),
    (
        "Ridge regression on ΔW over its norm is better than on ΔW as it is.",
        {"by": (OF_DELTA["directions"], OF_DELTA["updates"])},
    ),
    (
        "A GL-net of width 64 tells classes better where its head reads every product over its norm.",
        {"by": (NORMED.name, WIDE.name), "the kernel is ahead of it by": (KERNEL, NORMED.name)},
    ),
)
"""Statement, and the differences told, of which the first is judged."""


def findings(scores: pd.DataFrame, test_share: float) -> list[Finding]:
    """scores: seed × (model, kernel or reading)."""
    judged = []
    for statement, pairs in JUDGED:
        gaps = {
            words: over_seeds((scores[one] - scores[other]).tolist(), test_share, len(JUDGED))
            for words, (one, other) in pairs.items()
        }
        told = "; ".join(f"{words} {with_interval(gap)}" for words, gap in gaps.items())
        judged.append(Finding(statement, verdict(gaps["by"]), f"{told}.", in_paper=False))
    return judged


def heads(trials: Trials) -> list[Finding]:
    """Of each of the authors' other heads, whether it reads the classes better."""
    judged = []
    for words, variant in HEADS.items():
        gain, left = (
            differences(trials, "accuracy", *pair, among=len(HEADS))
            for pair in ((variant.name, WIDE.name), (KERNEL, variant.name))
        )
        judged.append(
            Finding(
                f"A GL-net of width 64 tells classes better where its products are read {words}.",
                verdict(gain),
                f"by {with_interval(gain)}; the kernel is ahead of it by {with_interval(left)}.",
                in_paper=False,
            )
        )
    return judged


def notes() -> list[str]:
    return [
        (
            "Every ridge regression is the product kernel's own, on other inputs: of all modules, each as it is or over"
            " its norm, and the ridge, chosen by the squared error on the validation LoRAs, fitted to the training"
            " LoRAs. Products are Φ ΔW Ψᵀ of every module, of width × width, which are all that GL-net's head reads."
            f" Untrained: Φ and Ψ as GL-net starts, U(−1, 1)/√n, the mean of {DRAWS} draws at each split. Leading"
            " directions': the leading left and right singular directions of the training LoRAs' ΔW over their norms."
            " Trained: of GL-nets fitted again, on the same training LoRAs that the ridge regression then sees a second"
            " time. GL-net's head reads products as they are, and over their norm was chosen wherever both were"
            " offered: so the trained ones stand as they are too, a row that was added when the others had been seen."
        ),
        (
            "Width 16 is GL-net with the setting that table 2's grid chose for the classes at each split, and a head of"
            f" 2 × 64. Width 64 is that of the learning curves, with one setting ({SETTING} accuracy), not searched."
        ),
        (
            f"{INTERVAL} {SHUFFLING} Those in findings are widened as for {len(JUDGED)}, the number of verdicts"
            f" but the last {len(HEADS)}, and these as for {len(HEADS)} (Bonferroni); a verdict is of the first"
            " difference it stands with."
        ),
        (
            "Products over their norm: the GL-net of width 64, trained again with the authors' GL-norm, which divides"
            " every product by its norm and gives each row a gain; asked when all else here had been seen. What the"
            " head's shape, loss, optimiser and stopping each do was not taken apart. Emojinette has four modules of 96"
            " or 192 × 128."
        ),
        (
            "Read module by module (InvariantHead2 of the authors' code) or by a Transformer over modules, which the"
            " authors define and do not use: the GL-net of width 64 with the setting it has with one head for all;"
            " none was searched. Asked last, when all else here had been seen."
        ),
    ]
