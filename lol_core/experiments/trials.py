"""Models tuned and tested on one question about a zoo, with its controls: every fit is a line of a file, so that a
stopped experiment goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lol_core.collections.opening import open_source
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import TaskError, ZooError
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.paper import FIVE
from lol_core.learning.checkpoint import TrainingConfig
from lol_core.learning.evaluation import bootstrap_interval, control_scores
from lol_core.learning.executor import Executor, Lost, executor
from lol_core.learning.factors import Factors, control_features
from lol_core.learning.fit import Fit
from lol_core.learning.models import MODELS
from lol_core.learning.plan import Plan, plan
from lol_core.learning.tasks import Task

Scores = dict[str, float]
KERNEL = "product kernel"
SHUFFLED = "shuffled labels"
CONTROLS = ("constant", "structure only", "norms only", SHUFFLED)


@dataclass(frozen=True)
class Variant:
    """A model as it stands in an experiment. name: of its lines of fits; options: of its configuration, beside what is
    searched.
    """

    model: str
    name: str
    title: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, model: str | Variant) -> Variant:
        return model if isinstance(model, Variant) else cls(model, model, MODELS[model].title)

    @property
    def shuffled(self) -> str:
        """The name of the lines of the same model on shuffled labels."""
        return f"{self.name}, {SHUFFLED}"


@dataclass(frozen=True)
class Setting:
    """One point of a search: a learning rate, and options of the model's configuration (`LoLModel.searched`)."""

    learning_rate: float
    options: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a line of fits."""
        return {"learning_rate": self.learning_rate} | dict(self.options)

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Setting:
        options = tuple((name, value) for name, value in line.items() if name != "learning_rate")
        return cls(line["learning_rate"], options)


@dataclass(frozen=True)
class Budget:
    """How much is spent: seeds (each another split and initialisation), learning rates, at each of which every model is
    tried with each of its `searched` options, epochs, patience.

    options: at most so many of a model's options, all when None; loras: at most so many of a zoo, all when None.
    """

    seeds: int = 5
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    options: int | None = None
    dropout: float = 0.1
    epochs: int = 60
    patience: int = 10
    loras: int | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a fit depends on beside its model, seed and setting."""
        return {key: value for key, value in asdict(self).items() if key not in ("seeds", "learning_rates", "options")}

    def settings(self, variant: Variant) -> tuple[Setting, ...]:
        """What is tried for a model: one setting where nothing is fitted."""
        kind = MODELS[variant.model]
        rates = self.learning_rates[:1] if kind.memorizes else self.learning_rates
        return tuple(
            Setting(rate, tuple(options.items())) for rate in rates for options in kind.searched[: self.options]
        )

    def config(self, variant: Variant, setting: Setting, seed: int) -> TrainingConfig:
        options = dict(variant.options) | dict(setting.options)
        return TrainingConfig(
            model=variant.model,
            model_config=MODELS[variant.model].configure(dropout=self.dropout, **options),
            learning_rate=setting.learning_rate,
            epochs=self.epochs,
            patience=self.patience,
            seed=seed,
        )


SMALL = Budget(seeds=1, learning_rates=(1e-3,), options=1, epochs=2, patience=2, loras=60)
"""Seconds: for a look at how it runs. Its scores mean nothing."""


@dataclass(frozen=True)
class Question:
    """What is predicted about which sample zoo. extra: further test scores from the true labels and the predictions
    as `Task.decode` gives them.
    """

    name: str
    zoo: str
    targets: tuple[str, ...]
    kind: type[Task] | None = None
    extra: Callable[[pd.DataFrame, np.ndarray], Scores] | None = None


class Kept:
    """Lines of a JSON Lines file that were found under the conditions `about`; those found under others are left
    aside.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.about = path, json.loads(json.dumps(about))

    def lines(self) -> list[dict[str, Any]]:
        """Those that are whole: a machine that stopped may have left half of one."""
        if not self.path.is_file():
            return []
        parsed = map(_parsed, self.path.read_text().splitlines())
        return [line for line in parsed if line is not None and line["about"] == self.about]

    def add(self, **line: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                file.write(b"\n")
            file.write((json.dumps(line | {"about": self.about}) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


Line = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One piece of a sweep, which does not depend on the others. words: for people; make: its lines of fits."""

    words: str
    make: Callable[[Trials], list[Line]]


class Trials:
    """The fits of one question, kept in `folder`/NAME.jsonl."""

    def __init__(
        self,
        question: Question,
        zoo: Source,
        budget: Budget,
        folder: Path,
        models: Sequence[str | Variant] = tuple(FIVE),
    ):
        self.question, self.zoo, self.budget = question, zoo, budget
        self.variants = {variant.name: variant for variant in map(Variant.of, models)}
        self.kept = Kept(folder / f"{question.name}.jsonl", {"zoo": zoo.fingerprint, "budget": budget.about})
        self.identity = (question, zoo.fingerprint, zoo.labels_digest, budget, tuple(self.variants.values()))
        self._factors: Factors | None = None
        self._kernels: dict[str, np.ndarray] | None = None

    def run(self, reporter: Reporter = SILENT, workers: int | str = 1) -> pd.DataFrame:
        """Make what is missing; workers as `executor` takes them. Returns a row for each model (its best setting on
        validation data at that seed), kernel and control at each seed: columns model, seed, and its scores. Raises
        Stopped.
        """
        runner = executor(workers)
        self._make(self._searched(), runner, reporter)
        self._make(self._shuffled(), runner, reporter)
        return self.table()

    def _searched(self) -> Iterator[Step]:
        for seed in range(self.budget.seeds):
            for model, variant in self.variants.items():
                for setting in self.budget.settings(variant):
                    if not self._known(model, seed, setting.to_dict()):
                        yield Step(
                            f"{model}, seed {seed}", partial(Trials._fit, model=model, setting=setting, seed=seed)
                        )
            if not self._known(KERNEL, seed):
                yield Step(f"controls, seed {seed}", partial(Trials._controls, seed=seed))

    def _shuffled(self) -> Iterator[Step]:
        """The chosen setting of each model at seed 0, fitted to permuted training and validation labels."""
        for model, variant in self.variants.items():
            if not self._known(variant.shuffled, 0):
                make = partial(Trials._fit_shuffled, model=model, setting=self._setting(model, 0))
                yield Step(f"{model}, {SHUFFLED}", make)

    def _make(self, steps: Iterable[Step], runner: Executor, reporter: Reporter) -> None:
        steps = list(steps)
        started, lost = time.monotonic(), list[str]()
        kept = "What was fitted is kept; the same command goes on."
        reporter.check(kept)
        reporter.show(f"{self.question.name}: {steps[0].words if steps else ''}", 0.0)
        with closing(runner.map(partial(_made, self), steps)) as results:
            for done, (step, lines) in enumerate(results, 1):
                if isinstance(lines, Lost):
                    lost.append(f"{step.words}: {lines.reason}")
                else:
                    for line in lines:
                        if not self._known(line["model"], line["seed"], line["setting"]):  # nothing twice
                            self.kept.add(**line)
                left = (time.monotonic() - started) / done * (len(steps) - done) / 60
                reporter.show(f"{self.question.name}: {step.words}, about {left:.0f} min left", done / len(steps))
                if done < len(steps):
                    reporter.check(kept)
        if lost:
            raise TaskError(f"{self.question.name}: {' '.join(lost)} {kept}")

    @property
    def test_share(self) -> float:
        """Test LoRAs for each training LoRA."""
        train, _, test = TrainingConfig().fractions
        return test / train

    def __getstate__(self) -> dict[str, Any]:
        """Sent to other processes without what they make themselves."""
        return self.__dict__ | {"_factors": None, "_kernels": None}

    def table(self) -> pd.DataFrame:
        rows = []
        for line in self.chosen():
            rows.append({"model": line["model"], "seed": line["seed"]} | line["scores"])
        return pd.DataFrame(rows)

    def chosen(self) -> list[dict[str, Any]]:
        """Of every model and seed whose search is complete the fit with the lowest validation loss, and everything
        that was not searched.
        """
        best: dict[tuple[str, int], dict[str, Any]] = {}
        lines = self.kept.lines()
        names = {*self.variants, *(variant.shuffled for variant in self.variants.values()), KERNEL, *CONTROLS}
        tried = {(line["model"], line["seed"], json.dumps(line["setting"])) for line in lines}
        for line in lines:
            key = (line["model"], line["seed"])
            variant = self.variants.get(line["model"])
            if variant and any((*key, json.dumps(s.to_dict())) not in tried for s in self.budget.settings(variant)):
                continue
            ours = line["model"] in names
            if (
                ours
                and line["seed"] < self.budget.seeds
                and (key not in best or line["validation_loss"] < best[key]["validation_loss"])
            ):
                best[key] = line
        return list(best.values())

    def _known(self, model: str, seed: int, setting: dict[str, Any] | None = None) -> bool:
        return any(
            (line["model"], line["seed"], line["setting"]) == (model, seed, setting) for line in self.kept.lines()
        )

    def _plan(self, model: str, setting: Setting, seed: int) -> tuple[Plan, TrainingConfig]:
        config = self.budget.config(self.variants.get(model) or Variant.of(model), setting, seed)
        ids = self.zoo.ids if self.budget.loras is None else self.zoo.ids[: self.budget.loras]
        return plan(self.zoo, self.question.targets, config, self.question.kind, ids), config

    def _fitted(self, model: str, setting: Setting, seed: int, shuffled: bool = False) -> Fit:
        fit = self.prepared(model, setting, seed)
        if shuffled:
            fit = fit.shuffled()
        fit.run()
        return fit

    def prepared(self, model: str, setting: Setting, seed: int) -> Fit:
        """A fit that has not begun: the split and labels of a seed, the model at its start."""
        planned, config = self._plan(model, setting, seed)
        if self._factors is None:
            self._factors = Factors(self.zoo, planned.spec, planned.ids)
            if self._factors.left_out:
                id, reason = next(iter(self._factors.left_out.items()))
                raise TaskError(f"{id}: {reason} An experiment needs every LoRA of its zoo.")
        return Fit.of(self._factors, planned.split, planned.task, self.zoo.labels, config)

    def _fit(self, model: str, setting: Setting, seed: int) -> list[Line]:
        fit = self._fitted(model, setting, seed)
        train, test = fit.outputs(fit.split["train"]), fit.outputs(fit.split["test"])
        scores = {"train loss": float(fit.task.loss(train, fit.encoded["train"]))}
        scores |= self._tested(fit.task, fit.split["test"], fit.task.decode(test)) | {
            "test loss": float(fit.task.loss(test, fit.encoded["test"]))
        }
        more = {"parameters": fit.model.n_parameters, "epochs": len(fit.history)}
        return [_line(model, seed, scores, setting.to_dict(), fit.best_loss, **more)]

    def _tested(self, task: Task, ids: Sequence[str], predicted: np.ndarray) -> Scores:
        truth = self.zoo.labels.loc[list(ids)]
        scores = dict(task.score(truth, predicted))
        low, high = bootstrap_interval(task, truth, predicted, 0)
        return (
            scores | {"low": low, "high": high} | (self.question.extra(truth, predicted) if self.question.extra else {})
        )

    def _controls(self, seed: int) -> list[Line]:
        """Constant, structure and norms; and the product kernel, at one seed's split."""
        fit = self.prepared("gl_net", self.budget.settings(Variant.of("gl_net"))[0], seed)
        split = fit.split
        assert self._factors is not None
        ids = [id for part in split.values() for id in part]
        scores_of = control_scores(
            fit.task, self.zoo.labels.loc[ids], split, control_features(self.zoo, self._factors, ids), seed
        )
        lines = [_line(name, seed, dict(scores)) for name, scores in scores_of.items()]
        everyone = list(self._factors.place)
        if self._kernels is None:
            self._kernels = kernels(self._factors.batch(everyone))
        place = {id: row for row, id in enumerate(everyone)}
        parts = {part: np.array([place[id] for id in members]) for part, members in split.items()}
        y = fit.task.numbers(fit.task.encode(self.zoo.labels.loc[everyone]))
        values, picked = kernel_ridge(self._kernels, parts["train"], parts["validation"], parts["test"], y)
        predicted = fit.task.from_numbers(values)
        return [*lines, _line(KERNEL, seed, self._tested(fit.task, split["test"], predicted), picked={**picked})]

    def _fit_shuffled(self, model: str, setting: Setting) -> list[Line]:
        fit = self._fitted(model, setting, 0, shuffled=True)
        predicted = fit.task.decode(fit.outputs(fit.split["test"]))
        return [_line(self.variants[model].shuffled, 0, self._tested(fit.task, fit.split["test"], predicted))]

    def _setting(self, model: str, seed: int) -> Setting:
        """The chosen setting of a model at a seed."""
        chosen = (line for line in self.chosen() if line["model"] == model and line["seed"] == seed)
        return Setting.from_dict(next(chosen)["setting"])

    def refit(self, model: str, seed: int, shuffled: bool = False) -> Fit:
        """The chosen setting of a model at a seed, fitted anew, its best weights loaded. shuffled: to permuted
        training and validation labels.
        """
        return self._fitted(model, self._setting(model, seed), seed, shuffled)


def _line(
    model: str,
    seed: int,
    scores: Scores,
    setting: dict[str, Any] | None = None,
    validation_loss: float = 0.0,
    **more: Any,
) -> Line:
    return {
        "model": model,
        "seed": seed,
        "setting": setting,
        "validation_loss": validation_loss,
        "scores": scores,
        **more,
    }


_latest: Trials | None = None


def _made(trials: Trials, step: Step) -> list[Line]:
    """The lines of a step. What the last sweep that this process worked for has read of its zoo is kept."""
    global _latest
    if _latest is None or _latest.identity != trials.identity:
        _latest = trials
    return step.make(_latest)


@dataclass
class Context:
    """What an experiment is run with. samples: the folder of the sample zoos; folder: where fits are kept; work:
    where LoRAs made for an experiment go; workers: as `executor` takes them; zoo: the address of another zoo to ask the
    same questions about.
    """

    samples: Path
    folder: Path
    budget: Budget = field(default_factory=Budget)
    reporter: Reporter = SILENT
    work: Path = Path("build")
    workers: int | str = 1
    zoo: str | None = None
    answered: dict[tuple[Any, ...], Trials] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether this is the run of seconds that shows how it goes."""
        return self.budget.loras is not None

    def trials(
        self, question: Question, models: Sequence[str | Variant] = tuple(FIVE), seeds: int | None = None
    ) -> Trials:
        """The fits of a question, made now as far as they are missing; seeds: the budget's when None. Raises
        Stopped, ZooError, TaskError.
        """
        budget = self.budget if seeds is None else replace(self.budget, seeds=seeds)
        key = (question.name, tuple(map(Variant.of, models)), budget.seeds)
        if key not in self.answered:
            trials = Trials(question, self.zoo_of(question), budget, self.folder, models)
            trials.run(self.reporter, self.workers)
            self.answered[key] = trials
        return self.answered[key]

    def zoo_of(self, question: Question) -> Source:
        """The zoo that a question is asked about. Raises ZooError when it has no labels of that name."""
        if self.zoo is None:
            return Zoo.open(self.samples / question.zoo)
        zoo = open_source(self.zoo, reporter=self.reporter)
        if missing := [target for target in question.targets if target not in zoo.labels.columns]:
            raise ZooError(
                f"{self.zoo}: no column {missing[0]!r}, which {question.name} is about; it has"
                f" {', '.join(map(str, zoo.labels.columns)) or 'no labels'}. Give it a labels.csv with that column."
            )
        return zoo
