"""What an experiment is run with, and the fits that its questions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lol_core.collections.opening import open_source
from lol_core.collections.source import Source
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError
from lol_core.experiments.paper import FIVE
from lol_core.experiments.question import FOLDS, REPEATS, Question
from lol_core.experiments.search import SMALL_SEARCH, Budget, Halving, Variant
from lol_core.experiments.trials import Trials


@dataclass
class Context:
    """What an experiment is run with. samples: the folder of the sample zoos; folder: where fits are kept; work:
    where LoRAs made for an experiment go; workers: as `executor` takes them; zoo: the address of another zoo to ask the
    same questions about, labels: the table of its labels where they are not in it.
    """

    samples: Path
    folder: Path
    budget: Budget = field(default_factory=Budget)
    reporter: Reporter = SILENT
    work: Path = Path("build")
    workers: int | str = 1
    zoo: str | None = None
    labels: Path | None = None
    answered: dict[tuple[Any, ...], Trials] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether models are searched by successive halving, each in its own grid."""
        return self.budget.search is not None

    def by_halving(self) -> Context:
        """This one, or where it asks for the grid a like one that searches by halving; with fits of its own."""
        if self.searched:
            return self
        search = SMALL_SEARCH if self.small else Halving()
        return replace(self, budget=replace(self.budget, search=search), answered={})

    @property
    def small(self) -> bool:
        """Whether this is the run of seconds that shows how it goes."""
        return self.budget.loras is not None

    def trials(
        self,
        question: Question,
        models: Sequence[str | Variant] = tuple(FIVE),
        seeds: int | None = None,
        known: int | None = None,
    ) -> Trials:
        """The fits of a question, made now as far as they are missing; seeds: the budget's when None, of a folded
        question its folds, for Dense those of the first cross-validation alone; known: of at most so many training
        LoRAs. Raises Stopped, ZooError, TaskError.
        """
        variants = [*map(Variant.of, models)]
        if question.folded:
            seeds = FOLDS * REPEATS if not self.small else 2
            variants = [replace(each, splits=FOLDS) if each.model == "dense" else each for each in variants]
        budget = replace(self.budget, seeds=seeds or self.budget.seeds, known=known)
        key = (question.name, tuple(variants), budget.seeds, known)
        if key not in self.answered:
            zoo = self.zoo_of(question)
            question = question.asked_with(zoo.labels.columns) or question
            trials = Trials(question, zoo, budget, self.folder, models=variants)
            trials.run(self.reporter, self.workers)
            self.answered[key] = trials
        return self.answered[key]

    def askable(self, questions: Sequence[Question]) -> list[Question]:
        """Those that the zoo has labels for: all of a sample zoo. Raises ZooError when another zoo has none of them."""
        if self.zoo is None:
            return list(questions)
        zoo = self._other
        if askable := [question for question in questions if question.asked_with(zoo.labels.columns)]:
            return askable
        wanted = " or ".join(" ".join(targets) for q in questions for targets in (q.targets, q.elsewhere) if targets)
        raise ZooError(
            f"{self.zoo} has no labels to ask about; it has {', '.join(map(str, zoo.labels.columns)) or 'none at all'}."
            f" Give it a labels.csv with {wanted}."
        )

    def zoo_of(self, question: Question) -> Source:
        """The zoo that a question is asked about. Raises ZooError when it has no labels for it."""
        if self.zoo is None:
            return Zoo.open(self.samples / question.zoo)
        self.askable([question])
        return self._other

    @cached_property
    def _other(self) -> Source:
        return open_source(str(self.zoo), self.labels, reporter=self.reporter)
