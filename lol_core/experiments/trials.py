"""Models tuned and tested on one question about a zoo, with its controls: every fit is a line of a file, so that a
stopped experiment goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DivergedError, TaskError
from lol_core.experiments.kept import Kept, Line, Scores, line_of
from lol_core.experiments.kernel import kernel_ridge, kernels
from lol_core.experiments.paper import FIVE
from lol_core.experiments.question import FOLDS, Question, fold_of
from lol_core.experiments.search import SHUFFLED, Budget, Setting, Variant
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import bootstrap_interval, control_predictions
from lol_core.learning.executor import Executor, Lost, executor
from lol_core.learning.factors import Factors, control_features
from lol_core.learning.fit import Fit
from lol_core.learning.plan import Plan, plan
from lol_core.learning.tasks import Task

KERNEL = "product kernel"
CONTROLS = ("constant", "structure only", "norms only", SHUFFLED)


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
        *,
        models: Sequence[str | Variant] = tuple(FIVE),
    ):
        self.question, self.zoo, self.budget = question, zoo, budget
        self.variants = {variant.name: variant for variant in map(Variant.of, models)}
        about: dict[str, Any] = {"zoo": zoo.fingerprint, "budget": budget.about}
        about |= {"folds": FOLDS} if question.folded else {}
        self.kept = Kept(folder / f"{question.name}.jsonl", about)
        self.identity = (question, zoo.fingerprint, zoo.labels_digest, budget, tuple(self.variants.values()))
        self._factors: Factors | None = None
        self._kernels: dict[str, np.ndarray] | None = None

    def run(self, reporter: Reporter = SILENT, workers: int | str = 1) -> pd.DataFrame:
        """Make what is missing; workers as `executor` takes them. Returns a row for each model (its best setting on
        validation data at that seed), kernel and control at each seed: columns model, seed, and its scores. Raises
        Stopped.
        """
        runner = executor(workers)
        if self.budget.search is not None:
            for rung in range(len(self.budget.search.rungs)):
                self._make(self._of_rung(rung), runner, reporter)
        self._make(self._over_splits(), runner, reporter)
        self._make(self._shuffled(), runner, reporter)
        return self.table()

    def _over_splits(self) -> Iterator[Step]:
        for seed in range(self.budget.seeds):
            for model, variant in self.variants.items():
                for setting in self._settings(variant) if seed < self.splits(model) else ():
                    if not self._known(model, seed, setting.to_dict()):
                        yield Step(
                            f"{model}, seed {seed}", partial(Trials._fit, model=model, setting=setting, seed=seed)
                        )
            if not self._known(KERNEL, seed):
                yield Step(f"controls, seed {seed}", partial(Trials._controls, seed=seed))

    def splits(self, name: str) -> int:
        """At how many splits there is a score of a model or control."""
        fewer = self.variants[name].splits if name in self.variants else None
        return min(self.budget.seeds, fewer or self.budget.seeds)

    def _of_rung(self, rung: int) -> Iterator[Step]:
        """What a rung of the search fits, at seed 0."""
        assert self.budget.search is not None
        last = rung == len(self.budget.search.rungs) - 1
        make = partial(Trials._fit, seed=0) if last else Trials._try
        for model, variant in self.variants.items():
            for setting in self._standing(variant, rung):
                if not self._known(model, 0, setting.to_dict()):
                    words = f"{model}, rung {rung + 1} of its search"
                    yield Step(words, partial(make, model=model, setting=setting))

    def _standing(self, variant: Variant, rung: int) -> list[Setting]:
        """Settings that a rung of the search fits: all that were drawn, or the best of the rung before; none where
        nothing is searched. Raises TaskError when the rung before is not complete.
        """
        search = self.budget.search
        assert search is not None
        drawn = search.drawn(variant)
        if len(drawn) == 1:
            return []
        own = (line for line in self.kept.lines() if (line["model"], line["seed"]) == (variant.name, 0))
        lines = {json.dumps(line["setting"]): line for line in own}
        standing = list(drawn)
        for k in range(rung):
            scores: dict[Setting, float] = {}
            for setting in standing:
                line = lines.get(json.dumps(search.at(k, setting).to_dict()))
                if line is None:
                    raise TaskError(f"{self.question.name}: the search for {variant.title} is not complete.")
                scores[setting] = -np.inf if line["validation_score"] is None else line["validation_score"]
            best = sorted(standing, key=scores.__getitem__, reverse=True)
            standing = best[: search.rungs[k].kept]
        return [search.at(rung, setting) for setting in standing] if rung < len(search.rungs) else standing

    def _settings(self, variant: Variant) -> tuple[Setting, ...]:
        """What is fitted at every split: the whole grid, or what the search has chosen. Raises TaskError when it has
        not chosen yet.
        """
        search = self.budget.search
        drawn = self.budget.settings(variant)
        if search is None or len(drawn) == 1:
            return drawn
        last = len(search.rungs) - 1
        return tuple(search.at(last, setting) for setting in self._standing(variant, last + 1))

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
        train, validation, test = TrainingConfig().fractions
        left_out = max(1.0, train * len(self.labelled) / self.budget.known) if self.budget.known else 1.0
        if self.question.folded:
            return left_out * (train + validation) / train / (FOLDS - 1)
        return left_out * test / train

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
        wanted = {name: self._tried(variant) for name, variant in self.variants.items()}
        for line in lines:
            key = (line["model"], line["seed"])
            if line["model"] not in names or line["seed"] >= self.budget.seeds:
                continue
            settings = wanted.get(line["model"])
            if settings is not None and (
                json.dumps(line["setting"]) not in settings or any((*key, each) not in tried for each in settings)
            ):
                continue
            if key not in best or line["validation_loss"] < best[key]["validation_loss"]:
                best[key] = line
        return list(best.values())

    def _tried(self, variant: Variant) -> set[str]:
        """The settings that a model's score at a split is chosen among, as they stand in lines; of a search that is
        not complete, one that stands in none.
        """
        try:
            return {json.dumps(setting.to_dict()) for setting in self._settings(variant)}
        except TaskError:
            return {""}

    def _known(self, model: str, seed: int, setting: dict[str, Any] | None = None) -> bool:
        return any(
            (line["model"], line["seed"], line["setting"]) == (model, seed, setting) for line in self.kept.lines()
        )

    def _plan(self, model: str, setting: Setting, seed: int) -> tuple[Plan, TrainingConfig]:
        config = self.budget.config(self.variants.get(model) or Variant.of(model), setting, seed)
        ids = self.zoo.ids if self.budget.loras is None else self.zoo.ids[: self.budget.loras]
        planned = plan(self.zoo, self.question.targets, config, self.question.kind, ids=ids)
        if self.question.folded:
            planned = replace(planned, split=fold_of(self.labelled, seed))
        return planned, config

    def _split(self, whole: dict[str, list[str]], seed: int) -> dict[str, list[str]]:
        """With as many training LoRAs as the budget lets be known; fewer of them are among more of them."""
        train = whole["train"]
        chosen = np.random.default_rng(seed).permutation(len(train))[: self.budget.known]
        return whole | {"train": [train[i] for i in sorted(chosen)]}

    @property
    def labelled(self) -> list[str]:
        """The LoRAs that have the question's labels, in the order in which folds are cut."""
        ids = self.zoo.ids if self.budget.loras is None else self.zoo.ids[: self.budget.loras]
        return sorted(self.zoo.labels.loc[ids, list(self.question.targets)].dropna().index)

    def _fit(self, model: str, setting: Setting, seed: int) -> list[Line]:
        """Of what diverges in a search there is a line without a score."""
        try:
            return self._scored(model, setting, seed)
        except DivergedError:
            if self.budget.search is None:
                raise
            return [line_of(model, seed, {}, setting.to_dict(), validation_loss=float("inf"), validation_score=None)]

    def _try(self, model: str, setting: Setting) -> list[Line]:
        """As `_fit` at seed 0, without predictions, of which those that are only tried in a search are never read."""
        return [
            {name: value for name, value in line.items() if name != "predicted"}
            for line in self._fit(model, setting, 0)
        ]

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
        split = self._split(planned.split, seed)
        return Fit.of(self._factors, split, planned.task, self.zoo.labels, config=config)

    def _scored(self, model: str, setting: Setting, seed: int) -> list[Line]:
        fit = self._fitted(model, setting, seed)
        train, test = fit.outputs(fit.split["train"]), fit.outputs(fit.split["test"])
        scores = {"train loss": float(fit.task.loss(train, fit.encoded["train"]))}
        scores |= self._tested(fit.task, fit.split["test"], fit.task.decode(test)) | {
            "test loss": float(fit.task.loss(test, fit.encoded["test"]))
        }
        more: dict[str, Any] = {"parameters": fit.model.n_parameters, "epochs": len(fit.history)}
        loss = fit.validation["validation_loss"]
        loss = loss if np.isfinite(loss) else float("inf")
        if self.budget.search is not None:
            more["validation_score"] = self._validated(fit)
        more |= self._predicted(fit.task.decode(test))
        return [line_of(model, seed, scores, setting.to_dict(), validation_loss=loss, **more)]

    def _validated(self, fit: Fit) -> float | None:
        """The score that the table reports, of the validation LoRAs; None where it is not defined."""
        ids = fit.split["validation"]
        score = fit.task.score(self.zoo.labels.loc[ids], fit.task.decode(fit.outputs(ids)))[self.question.score]
        return None if np.isnan(score) else score

    def _predicted(self, values: np.ndarray) -> dict[str, Any]:
        """What a line keeps of predictions: of one target, where LoRAs are compared one by one."""
        return {"predicted": [float(f"{value:.5g}") for value in values[:, 0]]} if self.question.folded else {}

    def _tested(self, task: Task, ids: Sequence[str], predicted: np.ndarray) -> Scores:
        truth = self.zoo.labels.loc[list(ids)]
        scores = dict(task.score(truth, predicted))
        low, high = bootstrap_interval(task, truth, predicted, seed=0)
        extra = self.question.extra(truth[list(task.targets)], predicted) if self.question.extra else {}
        return scores | {"low": low, "high": high} | extra

    def _controls(self, seed: int) -> list[Line]:
        """Constant, structure and norms; and the product kernel, at one seed's split."""
        fit = self.prepared("gl_net", self.budget.settings(Variant.of("gl_net"))[0], seed)
        split = fit.split
        assert self._factors is not None
        ids = [id for part in split.values() for id in part]
        known = split["train"] + split["validation"]
        features = control_features(self.zoo, self._factors, ids)
        controls = control_predictions(
            fit.task, self.zoo.labels.loc[ids], known, split["test"], features=features, seed=seed
        )
        truth = self.zoo.labels.loc[split["test"]]
        lines = [
            line_of(name, seed, dict(fit.task.score(truth, values)), **self._predicted(values))
            for name, values in controls.items()
        ]
        everyone = list(self._factors.place)
        if self._kernels is None:
            self._kernels = kernels(self._factors.batch(everyone))
        place = {id: row for row, id in enumerate(everyone)}
        parts = {part: np.array([place[id] for id in members]) for part, members in split.items()}
        y = fit.task.numbers(fit.task.encode(self.zoo.labels.loc[everyone]))
        values, picked = kernel_ridge(self._kernels, parts["train"], parts["validation"], parts["test"], y=y)
        predicted = fit.task.from_numbers(values)
        more = {"picked": {**picked}} | self._predicted(predicted)
        return [*lines, line_of(KERNEL, seed, self._tested(fit.task, split["test"], predicted), **more)]

    def ridge(self, fit: Fit, matrices: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, float | str]]:
        """What ridge regression on kernels of all `labelled` LoRAs, chosen and fitted as for the product kernel,
        predicts of a fit's test LoRAs, as `Task.decode` gives it; and what was chosen.
        """
        place = {id: row for row, id in enumerate(self.labelled)}
        known, validation, test = (
            np.array([place[id] for id in fit.split[part]]) for part in ("train", "validation", "test")
        )
        y = fit.task.numbers(fit.task.encode(self.zoo.labels.loc[self.labelled]))
        values, picked = kernel_ridge(matrices, known, validation, test, y=y)
        return fit.task.from_numbers(values), picked

    def _fit_shuffled(self, model: str, setting: Setting) -> list[Line]:
        fit = self._fitted(model, setting, 0, shuffled=True)
        predicted = fit.task.decode(fit.outputs(fit.split["test"]))
        return [line_of(self.variants[model].shuffled, 0, self._tested(fit.task, fit.split["test"], predicted))]

    def _setting(self, model: str, seed: int) -> Setting:
        """The chosen setting of a model at a seed."""
        chosen = (line for line in self.chosen() if line["model"] == model and line["seed"] == seed)
        return Setting.from_dict(next(chosen)["setting"])

    def refit(self, model: str, seed: int, shuffled: bool = False) -> Fit:
        """The chosen setting of a model at a seed, fitted anew, its best weights loaded. shuffled: to permuted
        training and validation labels.
        """
        return self._fitted(model, self._setting(model, seed), seed, shuffled)


_latest: Trials | None = None


def _made(trials: Trials, step: Step) -> list[Line]:
    """The lines of a step. What the last sweep that this process worked for has read of its zoo is kept."""
    global _latest
    if _latest is None or _latest.identity != trials.identity:
        _latest = trials
    return step.make(_latest)
