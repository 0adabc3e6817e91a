"""Long work beside the page: a thread that never touches streamlit, watched by a fragment. One job at a time in the whole server."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lol_core.checkpoint import Checkpoint, TrainingConfig
from lol_core.errors import LoLError
from lol_core.generation import Painter, Sampling, Stopped
from lol_core.training import Plan, Progress, train
from lol_core.zoo import Zoo

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


class Job:
    """A thread that can be asked to stop, and how far it is. Jobs of all sessions take turns."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait_and_work, daemon=True, name=type(self).__name__)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

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
        while not ONE_AT_A_TIME.acquire(timeout=0.5):
            if self.stopping:
                return
        try:
            self.started = time.monotonic()
            self._work()
        finally:
            ONE_AT_A_TIME.release()

    def _work(self) -> None:
        raise NotImplementedError


class TrainingJob(Job):
    """Trains runs one after the other. `stop()` ends the present one at its last finished epoch, saved, and skips the rest."""

    def __init__(self, zoo: Zoo, runs: list[Run]):
        super().__init__()
        self.zoo, self.runs = zoo, runs

    @property
    def fraction(self) -> float:
        return sum(1.0 if run.ended else run.progress.fraction for run in self.runs) / len(self.runs)

    def _work(self) -> None:
        for run in self.runs:
            if self.stopping:
                run.error = "Skipped: training was stopped before it began."
                continue
            self._train(run)

    def _train(self, run: Run) -> None:
        def report(progress: Progress) -> None:
            run.progress = progress

        try:
            run.checkpoint = train(self.zoo, run.plan, run.config, run.out, report, self._stop.is_set, run.resume)
        except LoLError as error:
            run.error = str(error)
        except Exception as error:  # a page never shows a traceback; the log does
            traceback.print_exc()
            run.error = f"An unexpected {type(error).__name__}: {error}. The server's log has the details."


@dataclass(frozen=True)
class Sheet:
    """Images to draw: one LoRA (None: the base alone) and its prompts."""

    lora: Path | None
    prompts: tuple[str, ...]


class DrawingJob(Job):
    """Draws sheets one after the other into the painter's cache. `stop()` ends between two sampling steps; what is finished stays."""

    def __init__(self, open_painter: Callable[[], Painter], sheets: list[Sheet], sampling: Sampling):
        super().__init__()
        self.open_painter, self.sheets, self.sampling = open_painter, sheets, sampling
        self.done = 0
        self.error: str | None = None

    @property
    def fraction(self) -> float:
        return self.done / len(self.sheets)

    def _work(self) -> None:
        try:
            painter = self.open_painter()
            for sheet in self.sheets:
                if self.stopping:
                    return
                painter.draw(sheet.lora, sheet.prompts, self.sampling, self._stop.is_set)
                self.done += 1
        except Stopped:
            return
        except LoLError as error:
            self.error = str(error)
        except Exception as error:  # a page never shows a traceback; the log does
            traceback.print_exc()
            self.error = f"An unexpected {type(error).__name__}: {error}. The server's log has the details."
