"""Long work beside the page: a thread that never touches streamlit, watched by a fragment. One job at a time in the
whole server.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from lol_core.collections.cache import cache_folder
from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import LoLError
from lol_core.experiments import run as run_experiment
from lol_core.experiments.result import Result
from lol_core.experiments.trials import SMALL, Context
from lol_core.insight.generation import Painter, Sampling
from lol_core.insight.maps import Map, MapSettings, draw_map
from lol_core.insight.survey import Surveys, duplicates
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.crossvalidation import Folds, crossvalidate
from lol_core.learning.training import Plan, train
from lol_core.learning.verdict import Difference

ONE_AT_A_TIME = threading.Semaphore(1)


@dataclass
class Run:
    """One model to train and how far it is."""

    title: str
    plan: Plan
    config: TrainingConfig
    out: Path
    resume: bool = False
    progress: Progress = field(default_factory=lambda: Progress("Waiting", 0.0))
    checkpoint: Checkpoint | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.checkpoint is not None or self.error is not None


def told(error: Exception) -> str:
    """What a page says of an error: never a traceback; that is in the log."""
    if isinstance(error, LoLError):
        return str(error)
    traceback.print_exception(error)
    return f"An unexpected {type(error).__name__}: {error}. The server's log has the details."


class Job:
    """A thread that can be asked to stop, how far it is, and what went wrong. Jobs of all sessions take turns, but
    for those that are light.
    """

    takes_turns = True

    def __init__(self) -> None:
        self.error: str | None = None
        self.message = "Another job is running on this server; this one waits."
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait_and_work, daemon=True, name=type(self).__name__)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def fraction(self) -> float:
        raise NotImplementedError

    @property
    def seconds_left(self) -> float | None:
        """From the pace so far; None until there is one."""
        return (time.monotonic() - self.started) * (1 / self.fraction - 1) if self.fraction > 0.05 else None

    def _wait_and_work(self) -> None:
        while self.takes_turns and not ONE_AT_A_TIME.acquire(timeout=0.5):
            if self.stopping:
                return
        try:
            self.started = time.monotonic()
            self._work()
        except Exception as error:
            self.error = told(error)
        finally:
            if self.takes_turns:
                ONE_AT_A_TIME.release()

    def _work(self) -> None:
        raise NotImplementedError


class IndexJob(Job):
    """Reads the headers of a folder. `stop()` ends after the present file; what was read is not read again.
    `result`: the collection.
    """

    takes_turns = False

    def __init__(self, folder: str, labels: str):
        super().__init__()
        self.folder, self.labels = folder, labels
        self.done, self.total = 0, 0
        self.result: Zoo | None = None

    @property
    def fraction(self) -> float:
        return self.done / max(1, self.total)

    def _work(self) -> None:
        def report(done: int, total: int) -> None:
            self.done, self.total = done, total
            self.message = f"Reading headers: {done:,} of {total:,} files"
            if self.stopping:
                raise Stopped("Stopped. The headers read so far are kept.")

        try:
            self.result = Zoo.open(Path(self.folder), self.labels or None, progress=report)
        except Stopped:
            return


class TrainingJob(Job):
    """Trains runs one after the other. `stop()` ends the present one at its last finished epoch, saved, and skips
    the rest.
    """

    def __init__(self, zoo: Zoo, runs: list[Run]):
        super().__init__()
        self.zoo, self.runs = zoo, runs

    @property
    def fraction(self) -> float:
        return sum(1.0 if run.ended else run.progress.fraction for run in self.runs) / len(self.runs)

    def _work(self) -> None:
        self.message = f"Training on {self.zoo.name}"
        for run in self.runs:
            if self.stopping:
                run.error = "Skipped: training was stopped before it began."
                continue
            self._train(run)

    def _train(self, run: Run) -> None:
        def report(progress: Progress) -> None:
            run.progress = progress

        try:
            reporter = Reporter(report, self._stop.is_set)
            run.checkpoint = train(self.zoo, run.plan, run.config, run.out, reporter, resume=run.resume)
        except Exception as error:
            run.error = told(error)


@dataclass(frozen=True)
class Validated:
    """A cross-validation, its scores (see `Folds.scores`), and how much better it ranks than each control."""

    folds: Folds
    scores: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, Difference]


class FoldsJob(Job):
    """Cross-validates models one after the other. `stop()` ends the present one and drops it; `found`: title → its
    validation.
    """

    def __init__(self, zoo: Zoo, targets: tuple[str, ...], configs: dict[str, TrainingConfig], folds: int):
        super().__init__()
        self.zoo, self.targets, self.configs, self.folds = zoo, targets, configs, folds
        self.found: dict[str, Validated] = {}
        self.share = 0.0

    @property
    def fraction(self) -> float:
        return self.share

    def _work(self) -> None:
        for title, config in self.configs.items():

            def report(progress: Progress, title: str = title) -> None:
                self.message = f"{title}: {progress.message}"
                self.share = (len(self.found) + progress.fraction) / len(self.configs)

            try:
                folds = crossvalidate(self.zoo, self.targets, config, self.folds, Reporter(report, self._stop.is_set))
                differences = {control: folds.difference(control) for control in ("norms only", "structure only")}
                self.found[title] = Validated(folds, folds.scores(), differences)
            except Stopped:
                return


class SurveyJob(Job):
    """Reads the weights of a collection once and finds those that are the same function. `stop()` ends after the
    present file; what is read stays.

    `result`: see `duplicates`; None until it is known.
    """

    takes_turns = False

    def __init__(self, zoo: Zoo):
        super().__init__()
        self.zoo = zoo
        self.share = 0.0
        self.result: pd.DataFrame | None = None

    @property
    def fraction(self) -> float:
        return self.share

    def _work(self) -> None:
        def read(done: int, total: int) -> None:
            self.share, self.message = 0.9 * done / total, f"Reading weights: {done:,} of {total:,}"

        def compared(done: int, total: int) -> None:
            self.share, self.message = 0.9 + 0.1 * done / total, f"Comparing updates: {done:,} of {total:,}"

        surveys = Surveys(self.zoo).complete(read, self._stop.is_set)
        found = duplicates(self.zoo, surveys, progress=compared, stop=self._stop.is_set)
        if not self.stopping:
            self.result = found


class MapJob(Job):
    """Places a collection in a space and draws it. `result`: the map."""

    def __init__(self, zoo: Zoo, settings: MapSettings, model: Checkpoint | None, start: pd.DataFrame | None):
        super().__init__()
        self.zoo, self.settings, self.model, self.first = zoo, settings, model, start
        self.share = 0.0
        self.result: Map | None = None

    @property
    def fraction(self) -> float:
        return self.share

    def _report(self, done: float, message: str) -> None:
        self.message, self.share = message, done

    def _work(self) -> None:
        self.result = draw_map(
            self.zoo,
            self.settings,
            checkpoint=self.model,
            start=self.first,
            report=self._report,
            stop=self._stop.is_set,
        )


@dataclass(frozen=True)
class Sheet:
    """Images to draw: one LoRA (None: the base alone) and its prompts."""

    lora: Path | None
    prompts: tuple[str, ...]


class DrawingJob(Job):
    """Draws sheets one after the other into the painter's cache. `stop()` ends between two sampling steps; what is
    finished stays.
    """

    def __init__(self, open_painter: Callable[[], Painter], sheets: list[Sheet], sampling: Sampling):
        super().__init__()
        self.open_painter, self.sheets, self.sampling = open_painter, sheets, sampling
        self.done = 0

    @property
    def fraction(self) -> float:
        return self.done / len(self.sheets)

    def _work(self) -> None:
        self.message = "Opening the base model"
        try:
            painter = self.open_painter()
            for sheet in self.sheets:
                if self.stopping:
                    return
                self.message = f"Drawing {self.done + 1} of {len(self.sheets)}"
                painter.draw(sheet.lora, sheet.prompts, self.sampling, self._stop.is_set)
                self.done += 1
        except Stopped:
            return


class ExperimentJob(Job):
    """Runs one of the paper's tables or figures small. `stop()` ends after the present fit, which stays. `result`:
    what came out; its scores mean nothing.
    """

    def __init__(self, name: str, samples: Path):
        super().__init__()
        self.name, self.samples = name, samples
        self.share = 0.0
        self.result: Result | None = None

    @property
    def fraction(self) -> float:
        return self.share

    def _work(self) -> None:
        def report(progress: Progress) -> None:
            self.message, self.share = progress.message, progress.fraction

        place = cache_folder() / "experiments"
        try:
            self.result = run_experiment(
                self.name, Context(self.samples, place / "fits", SMALL, Reporter(report, self._stop.is_set), place)
            )
        except Stopped:
            return
