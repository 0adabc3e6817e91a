"""Which models are judged on the held-out LoRAs, by what rule, and what they predict of them. Settled, with its digest
in `frozen`, before any of those LoRAs was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.errors import DataMissingError, TaskError, ZooError
from lol_core.experiments.context import Context
from lol_core.experiments.curve import APART as GL_NET_APART
from lol_core.experiments.curve import WIDE
from lol_core.experiments.frozen import Frozen
from lol_core.experiments.kept import Kept, Line
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.models import ASKED
from lol_core.experiments.question import Question
from lol_core.experiments.search import TWO_ORDERS, Setting, Variant
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.finetuning import rounds
from lol_core.finetuning.rounds import Round
from lol_core.learning.bootstrap import Resampled, concordance, explained, interval, mean_of, mean_over, over_trainings
from lol_core.learning.config import Keep, Schedule
from lol_core.learning.evaluation import control_predictions, norm_features
from lol_core.learning.factors import Factors
from lol_core.learning.fit import Fit
from lol_core.learning.models.apart import Apart
from lol_core.learning.stream import parts
from lol_core.learning.verdict import LEVEL, Difference

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "CLIP score": ("CLIP score, τ",),
    "attributes": ("attributes, accuracy",),
    "classes": ("classes, accuracy",),
    "data-set size": ("data-set size, accuracy",),
    "language": ("sources, accuracy", "validation loss, R²", "accuracy, R²"),
}
"""Family of tasks (tables 2 to 5 of the paper) → its questions, each of which must hold for the family to."""
FAMILIES_ASKED, FAMILIES_APART = 4, 2
"""In so many families a model must be above its rivals, and in so many of them with intervals that do not overlap."""

_W2T = Setting(
    1e-3,
    (
        ("batch_size", 64),
        ("weight_decay", 1e-3),
        ("clip", 1.0),
        ("warmup", 4),
        ("schedule", Schedule.COSINE.value),
        ("epochs", 45),
        ("patience", 0),
        ("keep", Keep.BEST_SCORE.value),
        ("dropout", 0.0),
    ),
)
_MVPROBE = Setting(
    3e-4,
    (
        ("batch_size", 128),
        ("weight_decay", 1e-5),
        ("epochs", 60),
        ("patience", 0),
        ("keep", Keep.BEST_SCORE.value),
        ("width", 512),
    ),
)


def _published(model: str, title: str, setting: Setting, apart: bool) -> Variant:
    options = (("apart", frozenset(Apart)),) if apart else ()
    own = ", size apart" if apart else ""
    return Variant(model, f"{model}, authors' schedule{own}", f"{title}{own}", options, setting)


@dataclass(frozen=True)
class Judged:
    """A model as it is judged: how often it is trained (each on another split of the committed zoo), and on which
    columns, all when empty. A variant without a setting of its own has those that the committed fits chose.
    """

    variant: Variant
    trainings: int
    columns: tuple[str, ...] = ()


OURS, MEAN = "tucker", "tucker and gl_net"
MEAN_TITLE = "mean of TuckerNet and GL-net, size apart"
CANDIDATES = {OURS: "TuckerNet", MEAN: MEAN_TITLE}
"""Models of our own that the goal is asked of. The second averages what the two predict, at the same trainings."""
RIVALS = {"gl_net": "GL-net", WIDE.name: WIDE.title, KERNEL: KERNEL}
NORMS, CONSTANT = "norms only", "constant"
CONTROLS = {NORMS: "control: norms only", CONSTANT: "control: constant"}
TRAININGS = 5
_PUBLISHED_ON = {"w2t": ("classes, accuracy", "sources, accuracy"), "mvprobe": ("sources, accuracy",)}
"""Where TuckerNet's lead was clear before: the published models take too long for all, MVProbe for the classes too."""
JUDGED = (
    Judged(Variant.of(OURS), TRAININGS),
    Judged(Variant.of("gl_net"), TRAININGS),
    Judged(WIDE, 3),
    Judged(GL_NET_APART, 3),
    *(
        Judged(_published(model, title, setting, apart), 1, _PUBLISHED_ON[model])
        for model, title, setting in (("w2t", "W2T", _W2T), ("mvprobe", "MVProbe", _MVPROBE))
        for apart in (False, True)
    ),
)


@dataclass(frozen=True)
class Exam:
    """Held-out zoos and the models asked about them."""

    round: Round
    judged: tuple[Judged, ...]

    @property
    def kept(self) -> str:
        """The file of what was read."""
        return f"{self.round.name}.jsonl"

    @property
    def frozen(self) -> str:
        """The file of the frozen design."""
        return f"{self.round.name}-frozen.json"

    @property
    def command(self) -> str:
        return f"`python -m lol_core finetune holdout --round {self.round.name}`"


FIRST = Exam(rounds.FIRST, JUDGED)
SECOND = Exam(
    rounds.SECOND,
    tuple(Judged(each, TRAININGS) for each in (TWO_ORDERS, Variant.of("gl_net"), WIDE, Variant.of(OURS))),
)
EXAMS = {exam.round.name: exam for exam in (FIRST, SECOND)}
TITLES = (
    CANDIDATES
    | RIVALS
    | {judged.variant.name: judged.variant.title for exam in (FIRST, SECOND) for judged in exam.judged}
    | CONTROLS
)
DRAWS, STAND_INS = 10_000, 24
"""Resamples; LoRAs of a small run, which are of the sample zoo, and not new."""


@dataclass(frozen=True)
class Reading:
    """What one training of a model says of the held-out LoRAs. score: as the question's table has it; predicted: of
    each LoRA the share of its labels that are right, or for a number its prediction.
    """

    score: str
    predicted: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, score: str, predicted: Sequence[float], truth: Sequence[float]) -> Reading:
        """As they stand in a line."""
        return cls(score, np.asarray(predicted, np.float64), np.asarray(truth, np.float64))

    @property
    def resampled(self) -> Resampled:
        if self.score == "kendall_tau":
            return concordance(self.truth, self.predicted)
        if self.score == "r2":
            return explained(self.truth[:, None], self.predicted[:, None])
        return mean_of(self.predicted[:, None])


@dataclass(frozen=True)
class Readings:
    """What was read of the held-out zoos. zoos: name → fingerprint and number of LoRAs; of: column → model → its
    trainings; changed: files that differed from the frozen ones when the models were trained, None where nothing was
    frozen.
    """

    zoos: Mapping[str, Mapping[str, Any]]
    of: Mapping[str, Mapping[str, Sequence[Reading]]]
    changed: frozenset[str] | None
    draws: int = DRAWS

    def score(self, column: str, name: str) -> Difference:
        """Mean over trainings and its 95 % interval."""
        return self._estimated([reading.resampled for reading in self.of[column][name]], column)

    def apart(self, column: str, one: str, other: str, among: int = 1) -> Difference:
        """one − other, on the same LoRAs and at the trainings that both have. among: how many such differences hold
        together (Bonferroni).
        """

        def gap(ours: Resampled, theirs: Resampled) -> Resampled:
            return lambda counts: ours(counts) - theirs(counts)

        pairs = zip(self.of[column][one], self.of[column][other], strict=False)
        return self._estimated([gap(a.resampled, b.resampled) for a, b in pairs], column, among)

    def _estimated(self, trainings: Sequence[Resampled], column: str, among: int = 1) -> Difference:
        count = len(next(iter(self.of[column].values()))[0].truth)
        value = float(mean_over(trainings)(np.ones((1, count)))[0])
        level = 1 - (1 - LEVEL) / among
        bounds = interval(over_trainings(trainings, seed=0), count, seed=0, draws=self.draws, level=level)
        return Difference(value, *bounds)

    def certain(self, name: str) -> list[str]:
        """Families of tasks in which every difference to every rival in every question has its interval above zero,
        widened for all of them (Bonferroni).
        """
        among = sum(map(len, FAMILIES.values())) * len(RIVALS)
        return [
            family
            for family, columns in FAMILIES.items()
            if all(column in self.of and name in self.of[column] for column in columns)
            and all(self.apart(column, name, rival, among).low > 0 for column in columns for rival in RIVALS)
        ]

    def families(self, name: str) -> tuple[list[str], list[str]]:
        """Families of tasks in which a model is above all rivals in every question by its mean, and those of them in
        which its interval overlaps with none of theirs. Of a family that was asked in part, neither.
        """
        above, apart = [], []
        for family, columns in FAMILIES.items():
            if not all(column in self.of and name in self.of[column] for column in columns):
                continue
            ours = [self.score(column, name) for column in columns]
            theirs = [[self.score(column, rival) for rival in RIVALS] for column in columns]
            pairs = [(own, rival) for own, each in zip(ours, theirs, strict=True) for rival in each]
            if all(own.value > rival.value for own, rival in pairs):
                above.append(family)
                if all(own.low > rival.high for own, rival in pairs):
                    apart.append(family)
        return above, apart


def measured(context: Context, exam: Exam = FIRST, *, missing: bool = True) -> Readings:
    """What the kept fits say; where `missing`, what is missing is made now if the held-out zoos are there. Raises
    DataMissingError where there is neither, ZooError where one of them is not whole, and Stopped.
    """
    frozen = None if context.small else Frozen.read(context.folder / exam.frozen)
    about = {"small": STAND_INS} if context.small else {"frozen": frozen.digest if frozen else None}
    kept = Kept(context.folder / exam.kept, about)
    asked = list(ASKED.items())[-1 if context.small else None :]
    zoos: dict[str, Mapping[str, Any]] = {}
    of: dict[str, dict[str, list[Reading]]] = {}
    changed: set[str] = set()
    for column, (question, score) in asked:
        known = any(line["column"] == column for line in kept.lines())
        fresh = held_out(context, question, exam, known=known) if missing else None
        if fresh is not None:
            _read(context, kept, frozen, column, fresh=fresh, judged=exam.judged)
        lines = [line for line in kept.lines() if line["column"] == column]
        lines = [line for line in lines if line["zoo"] == lines[-1]["zoo"]]
        if not lines:
            continue
        zoos[question.zoo] = lines[-1]["zoo"]
        for line in sorted(lines, key=lambda line: line["seed"]):
            changed |= set(line["changed"] or ())
            for name, values in line["predicted"].items():
                of.setdefault(column, {}).setdefault(name, []).append(Reading.of(score, values, line["truth"]))
    if not of:
        raise DataMissingError(f"{context.work / exam.round.name}: no zoo there. Make it with {exam.command}.")
    return Readings(zoos, of, None if frozen is None else frozenset(changed), 200 if context.small else DRAWS)


def held_out(context: Context, question: Question, exam: Exam = FIRST, *, known: bool = False) -> Source | None:
    """The held-out zoo that a question is asked about; None where it is not there. One that is not whole, of whose
    first LoRAs models would be asked twice, is left alone where answers are known; otherwise it raises ZooError.
    """
    place = context.samples if context.small else context.work / exam.round.name
    folder = place / question.zoo
    if not (folder / "labels.csv").is_file():
        return None
    zoo, planned = Zoo.open(folder), exam.round.counts[question.zoo]
    missing = [target for target in question.targets if target not in zoo.labels]
    if (len(zoo) >= planned and not missing) or context.small:
        return zoo
    if known:
        return None
    found = f"{', '.join(missing)} not measured yet" if len(zoo) >= planned else f"{len(zoo)} of {planned} LoRAs"
    raise ZooError(f"{folder}: {found}. {exam.command} goes on.")


def asked_of(context: Context, fresh: Source) -> list[str]:
    """The LoRAs of a held-out zoo; in a small run the stand-ins."""
    return fresh.ids[context.budget.loras :][:STAND_INS] if context.budget.loras else list(fresh.ids)


def _read(
    context: Context, kept: Kept, frozen: Frozen | None, column: str, *, fresh: Source, judged: Sequence[Judged]
) -> None:
    """Train what is missing of a column, and keep what it predicts: a line for each split."""
    question, score = ASKED[column]
    ids = asked_of(context, fresh)
    about = {"fingerprint": fresh.fingerprint, "LoRAs": len(ids)}
    known = {line["seed"] for line in kept.lines() if line["column"] == column and line["zoo"] == about}
    judged = [each for each in judged if not each.columns or column in each.columns]
    seeds = 1 if context.small else TRAININGS
    for seed in (seed for seed in range(seeds) if seed not in known):
        context.reporter.check("What was fitted is kept; the same command goes on.")
        trainings = Trainings(context, frozen, question, score, fresh, ids, seed, judged)
        predicted = {}
        for each in (each for each in judged if seed < each.trainings):
            context.reporter.show(f"{column}: {each.variant.title}, split {seed + 1}", seed / seeds)
            predicted[each.variant.name] = trainings.of(each.variant)
        if GL_NET_APART.name in predicted:
            predicted[MEAN] = (predicted[OURS] + predicted[GL_NET_APART.name]) / 2
        predicted |= trainings.baselines()
        changed = None if frozen is None else sorted(frozen.changed())
        line: Line = {"column": column, "seed": seed, "zoo": about, "changed": changed, "truth": trainings.truth}
        kept.add(**line, predicted={name: trainings.shortened(values) for name, values in predicted.items()})


@dataclass
class Trainings:
    """Models trained on one split of the committed zoo, and asked about the held-out LoRAs `ids` of `fresh`."""

    context: Context
    frozen: Frozen | None
    question: Question
    score: str
    fresh: Source
    ids: Sequence[str]
    seed: int
    judged: Sequence[Judged] = JUDGED

    @cached_property
    def trials(self) -> Trials:
        zoo = self.context.zoo_of(self.question)
        return Trials(
            self.question, zoo, self.context.budget, self.context.folder, models=[each.variant for each in self.judged]
        )

    @cached_property
    def plain(self) -> Fit:
        """One that is not trained: its split, task and labels."""
        return self.trials.prepared("gl_net", Setting(1e-3), self.seed)

    @cached_property
    def factors(self) -> Factors:
        """Raises TaskError when a held-out LoRA cannot be read."""
        factors = Factors(self.fresh, self.plain.spec, self.ids)
        if factors.left_out:
            id, reason = next(iter(factors.left_out.items()))
            raise TaskError(f"{id}: {reason} Every held-out LoRA is needed.")
        return factors

    @property
    def labels(self) -> pd.DataFrame:
        return self.fresh.labels.loc[list(self.ids), list(self.question.targets)]

    @property
    def truth(self) -> list[float]:
        """The number that is predicted of each LoRA; where labels are, one: what is right is right."""
        return [1.0] * len(self.ids) if self.score == "accuracy" else self.labels.iloc[:, 0].astype(float).tolist()

    def setting(self, variant: Variant) -> Setting:
        if variant.fixed is not None:
            return variant.fixed
        if self.frozen is None:
            return self.context.budget.settings(variant)[0]
        return Setting.from_dict(self.frozen.settings[self.question.name][variant.name][self.seed])

    @torch.no_grad()
    def of(self, variant: Variant) -> np.ndarray:
        """What a model predicts once it is trained, as `Task.decode` gives it."""
        fit = self.trials.prepared(variant.name, self.setting(variant), self.seed)
        with torch.enable_grad():
            fit.run()
        fit.model.eval()
        outputs = [fit.model(batch).float().cpu() for batch in self.factors.stream(parts(self.ids, 64), fit.device)]
        return fit.task.decode(torch.cat(outputs))

    def baselines(self) -> dict[str, np.ndarray]:
        """The product kernel and the controls, fitted to the same LoRAs."""
        fit = self.plain
        task, labels, split = fit.task, self.trials.zoo.labels, fit.split
        known = split["train"] + split["validation"]
        own, new = fit.factors.batch(known), self.factors.batch(self.ids)
        rows = np.arange(len(known) + len(self.ids))
        cuts = [len(split["train"]), len(known)]
        y = task.numbers(task.encode(labels.loc[known]))
        values, _ = kernel_ridge(kernels(own, new), *np.split(rows, cuts), y=y)
        features = np.concatenate([norm_features(own), norm_features(new)])
        norms = pd.DataFrame(features, index=[*known, *self.ids])
        both = pd.concat([labels.loc[known, list(task.targets)], self.labels])
        controls = control_predictions(task, both, known, self.ids, features={NORMS: norms}, seed=self.seed)
        return {KERNEL: task.from_numbers(values)} | controls

    def shortened(self, predicted: np.ndarray) -> list[float]:
        """What a line keeps of predictions: `Reading.predicted`."""
        if self.score != "accuracy":
            return [float(f"{value:.5g}") for value in predicted[:, 0]]
        right = self.plain.task.resampled("accuracy", self.labels, predicted)
        return [float(f"{share:.4g}") for share in right(np.eye(len(self.ids)))]
