"""Learning rate, steps and batch size told from weights: whether ΔW says them, or only the factors as they were
trained, which GL(r) takes away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.batch import Batch, WeightSpec, stack
from lol_core.core.groups import GL
from lol_core.core.svd import svd_of_product
from lol_core.core.symmetry import act, sample_for
from lol_core.experiments.comparison import (
    INTERVAL,
    SHUFFLING,
    cells,
    chart,
    intervals,
    settings,
    with_half_widths,
)
from lol_core.experiments.context import Context
from lol_core.experiments.kept import line_of
from lol_core.experiments.kernel import kernel_ridge
from lol_core.experiments.question import Question
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.search import TWO_ORDERS, Setting, Variant
from lol_core.experiments.trials import Trials
from lol_core.learning.models.apart import Apart
from lol_core.learning.tasks import Multiclass, Regression
from lol_core.learning.verdict import Difference, over_seeds

TITLE = "Hyperparameters: told from ΔW, or from what GL(r) takes away?"
SETTING = Setting(1e-3, (("normalize", True),))
"""Of every model."""
MODELS = ("mlp", "o_align", "svd", "gl_net")
WITH_SIZES = Variant(
    "gl_net", "gl_net, log sizes", "GL-net, log sizes", (("apart", frozenset({Apart.LOG_SIZES})),), SETTING
)
"""Told what the norms tell, in logarithms too."""
LOGARITHMS = {"log learning rate": "learning_rate", "log steps": "steps"}
ASKED = {
    "learning rate, R²": ("log learning rate",),
    "steps, R²": ("log steps",),
    "batch size, accuracy": ("batch_size",),
}
ZOOS = {"faces": "Faces", "glosses": "Glosses"}
SHOWN = ("glosses", "Glosses"), ("steps, R²", ASKED["steps, R²"])
"""Of the figure, and of a small run."""
CONDITION, DECADES = 100.0, 3.0
"""Of the R that turn factors: their condition number, and the powers of ten up to which they grow or shrink, as GL's
own draws have determinant ±1."""
TINY = torch.finfo(torch.float32).tiny


class Reading(StrEnum):
    """What ridge regression sees: `statistics` of these factors."""

    DELTA = "reading: ΔW's own factors P√σ, Q√σ"
    TRAINED = "reading: factors as trained"
    BOTH = "reading: both"
    TURNED = "reading: factors turned by random R"
    START = "reading: factors less their start"
    START_TURNED = "reading: factors turned, less their start"


Starts = Callable[[Sequence[str], WeightSpec], Batch]
"""Factors from which LoRAs were trained."""


def statistics(batch: Batch) -> Tensor:
    """Logarithms of the singular values of U and of V, of the norms of their columns in order, and of their entries'
    largest and mean sizes, of every module: (B, k). O(r) changes some of them, GL(r) all.
    """
    found = [
        torch.cat([each.flatten(1) for each in _sizes(factor)], 1)
        for pair in zip(batch.U, batch.V, strict=True)
        for factor in pair
    ]
    return torch.cat(found, 1).clamp(min=TINY).log()


def _sizes(factor: Tensor) -> tuple[Tensor, ...]:
    """factor: (B, L, n, r)."""
    entries = factor.abs()
    columns = factor.norm(dim=-2).sort(descending=True).values
    return torch.linalg.svdvals(factor), columns, entries.amax((-1, -2)), entries.mean((-1, -2))


def own(batch: Batch) -> Batch:
    """The same updates, their factors those that ΔW itself decides up to signs: U = P√σ, V = Q√σ."""
    pairs = [
        (P * sigma.sqrt().unsqueeze(-2), Q * sigma.sqrt().unsqueeze(-2))
        for P, sigma, Q in (svd_of_product(U, V) for U, V in zip(batch.U, batch.V, strict=True))
    ]
    return replace(batch, U=tuple(U for U, _ in pairs), V=tuple(V for _, V in pairs))


def turned(batch: Batch, seed: int) -> Batch:
    """The same updates, every module of every LoRA by an R of its own: κ = 100, times 10^U(−3, 3)."""
    random = torch.Generator().manual_seed(seed)
    R = sample_for(batch, GL, condition=CONDITION, generator=random)
    scales = [10 ** (DECADES * (2 * torch.rand(*r.shape[:2], 1, 1, generator=random, dtype=r.dtype) - 1)) for r in R]
    return act(tuple(scale * r for scale, r in zip(scales, R, strict=True)), batch)


def less(batch: Batch, start: Batch) -> Batch:
    """How far the factors are from others."""
    return replace(
        batch,
        U=tuple(U - U0 for U, U0 in zip(batch.U, start.U, strict=True)),
        V=tuple(V - V0 for V, V0 in zip(batch.V, start.V, strict=True)),
    )


def features(batch: Batch, start: Batch | None, seed: int = 0) -> dict[Reading, np.ndarray]:
    """What each reading sees, (B, k); those less the start where that is known."""
    moved = turned(batch, seed)
    found = {Reading.DELTA: own(batch), Reading.TRAINED: batch, Reading.TURNED: moved}
    if start is not None:
        found |= {Reading.START: less(batch, start), Reading.START_TURNED: less(moved, start)}
    seen = {reading: statistics(each).numpy() for reading, each in found.items()}
    return seen | {Reading.BOTH: np.concatenate([seen[Reading.DELTA], seen[Reading.TRAINED]], 1)}


def read(seen: np.ndarray, rows: Mapping[str, np.ndarray], y: np.ndarray) -> tuple[np.ndarray, dict[str, float | str]]:
    """Ridge regression, linear or with a Gaussian kernel, whichever is better on the validation LoRAs: predictions of
    the test LoRAs, (test, k), and what was chosen. seen: (B, features); rows: part of the split → its rows of both; y:
    (B, k).
    """
    train = seen[rows["train"]]
    X = (seen - train.mean(0)) / np.maximum(train.std(0), 1e-9)
    products = X @ X.T / X.shape[1]
    sizes = np.diag(products)
    gaussian = np.exp(-0.5 * np.maximum(sizes[:, None] + sizes[None] - 2 * products, 0))
    kernels = {"linear": products, "Gaussian": gaussian}
    return kernel_ridge(kernels, rows["train"], rows["validation"], rows["test"], y=y)


@dataclass(frozen=True)
class Asked:
    """One question's fits and readings. among: how many questions a finding is judged on."""

    trials: Trials
    among: int

    @property
    def score(self) -> str:
        return self.trials.question.score

    @property
    def readings(self) -> dict[str, list[float]]:
        """Reading → its score at each seed."""
        lines = sorted(self.trials.kept.lines(), key=lambda line: line["seed"])
        lines = [line for line in lines if line["seed"] < self.trials.budget.seeds]
        scores = {
            reading: [line["scores"][self.score] for line in lines if line["model"] == reading] for reading in Reading
        }
        return {str(reading): values for reading, values in scores.items() if values}

    def at_seeds(self, name: str) -> np.ndarray:
        """A model's, a control's or a reading's score at each seed."""
        if name in self.readings:
            return np.array(self.readings[name])
        table = self.trials.table()
        return table[table["model"] == name].sort_values("seed")[self.score].to_numpy(float)

    def gap(self, one: str, other: str) -> Difference:
        return over_seeds((self.at_seeds(one) - self.at_seeds(other)).tolist(), self.trials.test_share, self.among)

    def rows(self) -> pd.DataFrame:
        """Row → mean and half the width of its interval: models, the kernel, controls, readings."""
        return pd.concat([intervals(self.trials, self.score), with_half_widths(self.readings, self.trials.test_share)])

    def mean(self, name: str) -> float:
        return float(self.at_seeds(name).mean())


def run(context: Context) -> Result:
    zoos, columns = (dict([SHOWN[0]]), dict([SHOWN[1]])) if context.small else (ZOOS, ASKED)
    asked: dict[str, Asked] = {}
    for zoo, title in zoos.items():
        source = with_logarithms(Zoo.open(context.samples / zoo))
        trials_of = {
            f"{title}: {words}": Trials(
                question_of(zoo, targets), source, context.budget, context.folder, models=variants()
            )
            for words, targets in columns.items()
        }
        complete(list(trials_of.values()), partial(starts_of, source, context) if zoo == "faces" else None)
        for trials in trials_of.values():
            trials.run(context.reporter, context.workers)
        asked |= {column: Asked(trials, len(ZOOS) * len(ASKED)) for column, trials in trials_of.items()}
    table = pd.concat([cells(column, each.rows()) for column, each in asked.items()], ignore_index=True)
    about = settings([each.trials for each in asked.values()], context.budget)
    return Result(
        "hyperparameters", TITLE, table, findings(asked), notes(), chart(table, f"{SHOWN[0][1]}: {SHOWN[1][0]}"), about
    )


def variants() -> tuple[Variant, ...]:
    return (*(replace(Variant.of(name), fixed=SETTING) for name in MODELS), WITH_SIZES, TWO_ORDERS)


def question_of(zoo: str, targets: tuple[str, ...]) -> Question:
    name = f"{zoo}-{targets[0].removeprefix('log ').replace(' ', '-').replace('_', '-')}"
    if targets[0] in LOGARITHMS:
        return Question(name, zoo, targets, Regression, score="r2")
    return Question(name, zoo, targets, Multiclass)


def with_logarithms(zoo: Zoo) -> Zoo:
    logs = {name: np.log(zoo.labels[column].astype(float)) for name, column in LOGARITHMS.items()}
    return replace(zoo, labels=zoo.labels.assign(**logs))


def starts_of(zoo: Source, context: Context, ids: Sequence[str], spec: WeightSpec) -> Batch:
    """The factors that LoRAs of Faces were trained from, made again from their seeds."""
    from lol_core.finetuning.dreambooth import Base  # imports diffusers
    from lol_core.finetuning.recipes import CELEBA

    base = Base(context.samples / "small-diffusion")
    recipe = CELEBA.with_settings(context.samples / "faces" / "recipe.json")
    names = [module.name.removeprefix("unet.") for module in spec.modules]
    fresh = [base.fresh_factors(recipe, int(seed)) for seed in zoo.labels.loc[list(ids), "seed"]]

    def side(indices: Sequence[int], which: int) -> Tensor:
        found = [torch.stack([each[names[i]][which] for i in indices]) for each in fresh]
        return torch.stack(found).double()

    U = tuple(side(indices, 1) for _, indices in spec.groups)
    V = tuple(side(indices, 0).mT for _, indices in spec.groups)
    return Batch(spec, U, V, torch.full((len(fresh), len(names)), recipe.rank))


def complete(trials: Sequence[Trials], starts: Starts | None) -> None:
    """Readings that are missing, kept beside the fits."""
    wanted = [reading for reading in Reading if starts or reading not in (Reading.START, Reading.START_TURNED)]
    seen: Mapping[Reading, np.ndarray] = {}
    for each in trials:
        known = {(line["model"], line["seed"]) for line in each.kept.lines()}
        for seed in range(each.budget.seeds):
            todo = [reading for reading in wanted if (reading, seed) not in known]
            if not todo:
                continue
            fit = each.prepared("gl_net", SETTING, seed)
            ids = each.labelled
            if not seen:
                batch = stack([each.zoo.load(id) for id in ids], fit.spec, torch.float64)
                seen = features(batch, starts(ids, fit.spec) if starts else None)
            place = {id: row for row, id in enumerate(ids)}
            rows = {part: np.array([place[id] for id in members]) for part, members in fit.split.items()}
            y = fit.task.numbers(fit.task.encode(each.zoo.labels.loc[ids]))
            for reading in todo:
                values, picked = read(seen[reading], rows, y)
                predicted = fit.task.from_numbers(values)
                scores = dict(fit.task.score(each.zoo.labels.loc[fit.split["test"]], predicted))
                each.kept.add(**line_of(reading, seed, scores, picked=picked))


JUDGED = (
    (
        "The factors as trained say something that the same statistics of ΔW do not",
        (Reading.BOTH, Reading.DELTA),
        (Reading.TRAINED, Reading.DELTA),
        "added to those of ΔW they bring {}; in their place {}.",
    ),
    (
        "The factors as trained say more than the same factors turned by a random R",
        (Reading.TRAINED, Reading.TURNED),
        (Reading.TURNED, Reading.DELTA),
        "by {}; turned, they are {} from ΔW's own.",
    ),
    (
        "ΔW's own factors say more than the norms of the updates do",
        (Reading.DELTA, "norms only"),
        (Reading.DELTA, "constant"),
        "by {}; more than a constant by {}.",
    ),
    (
        "GL-net tells more than the norms of the updates do",
        ("gl_net", "norms only"),
        ("gl_net", Reading.DELTA),
        "by {}; from the reading of ΔW's own factors it is {}.",
    ),
    (
        "GL-net tells more with a branch for log ‖ΔW‖",
        (WITH_SIZES.name, "gl_net"),
        (WITH_SIZES.name, "norms only"),
        "by {}; from the norms of the updates it is {}.",
    ),
    (
        "The two-order kernel tells more than the norms of the updates do",
        (TWO_ORDERS.name, "norms only"),
        (TWO_ORDERS.name, Reading.DELTA),
        "by {}; from the reading of ΔW's own factors it is {}.",
    ),
)
"""Statement, what is compared for it, what beside it, and how both differences are told."""


def findings(asked: Mapping[str, Asked]) -> list[Finding]:
    found = []
    for (statement, judged, beside, here), (column, each) in product(JUDGED, asked.items()):
        lead, other = each.gap(*judged), each.gap(*beside)
        told = here.format(with_interval(lead), with_interval(other))
        found.append(Finding(f"{statement}: {column}.", verdict(lead), told, in_paper=False))
    return found


def notes() -> list[str]:
    return [
        (
            "Learning rate, batch size and, in Faces, steps were drawn apart from one another and from what a"
            " LoRA was trained on. Faces: learning rate 0.003, 0.006, 0.01 or 0.015, steps 100, 133, 167 or 200,"
            " batch size 1 or 2. Glosses: learning rate 10^U(−4.3, −2.3), falling linearly to zero, batch size 8,"
            " 16 or 32; its steps, 15 to 440, follow from epochs, the number of questions and the batch size, so"
            " that a batch size can be told by way of the steps. Learning rate and steps are asked in logarithms."
            " All were trained by AdamW from PEFT's start, B zero and A random."
        ),
        (
            "The models have one setting, which was not searched (learning rate 1e-3,"
            " inputs normalised, dropout 0.1, batches of 32, a head of 2 × 64, GL-net's width 16, at most 60"
            " epochs, 10 without a lower validation loss, the epoch with the lowest), and one training on each of"
            " five splits (70 / 15 / 15 %). Their order is that of this setting. None of their inputs is a"
            " logarithm, as all of the readings' and of the control of norms are, but for GL-net, log sizes: an MLP of"
            " log ‖ΔW‖ of every module is added to what that GL-net says. It was asked when all else here had been"
            " seen: whether that is what GL-net lacks beside the norms. The two-order kernel (docs/two_orders.md),"
            " which has no setting and reads log ‖ΔW‖ too, was asked last."
        ),
        (
            "Readings: ridge regression on logarithms of the singular values of U and of V, the norms of their"
            " columns in order, and the largest and mean size of their entries, of every module; linear or with a"
            " Gaussian kernel, and its ridge, chosen on the validation LoRAs. ΔW's own factors, P√σ and Q√σ of"
            " its singular value decomposition P diag(σ) Qᵀ, are decided by ΔW, so that what is read of them is"
            " GL-invariant; of the factors as trained it is not. The score of ΔW's own factors is of these"
            " statistics, not of all that ΔW holds, which may say by other statistics what these factors do."
        ),
        (
            f"Turned: each module of each LoRA once by an R of its own: one of condition number {CONDITION:.0f},"
            f" multiplied as a whole by 10^U(−{DECADES:.0f}, {DECADES:.0f}). ΔW stays, and with it what the two factors"
            " say together, such as det(UᵀU) det(VᵀV), the product of the squares of the singular values of ΔW. Less"
            " their start: A less the A that it was trained from, made again from the seed in the labels, of Faces"
            " alone; who finds a file does not have it."
        ),
        (
            f"{INTERVAL} {SHUFFLING} Those in findings are widened as for six of a kind, the number of questions"
            " (Bonferroni)."
        ),
        (
            "Not asked: rank, which of factors of full rank is the number of"
            " singular values of ΔW above zero, whatever the shape of a file; alpha, weight decay, dropout and"
            " epochs; other optimisers and other starts; statistics beside these, and models made for factors as"
            " they were trained. The LoRAs of Emojinette have one learning rate and number of steps."
        ),
    ]
