"""Long work beside the page: a thread that never touches streamlit, watched by a fragment. Jobs of all visitors take
turns, but for those that are light.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from streamlit.runtime.scriptrunner import get_script_run_ctx

from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import LoLError
from ui.access import access
from ui.plain import inert
from ui.turns import Turns

TURNS = Turns()
SHARE = 3
"""One visitor has at most this part of the jobs that a server takes on."""
BETWEEN = 0.2
"""Seconds between moments at which a job notes how far it was."""
_COUNTING = threading.Lock()
_ALIVE: WeakSet[Job[Any, Any]] = WeakSet()
Subject = TypeVar("Subject")
Result = TypeVar("Result")


class Job(Generic[Subject, Result]):
    """Some work on a subject. result: what it gave, None before its end or when it was stopped; error: why it failed,
    in a sentence.
    """

    def __init__(self, work: Callable[[Reporter], Result], subject: Subject, *, takes_turns: bool = True):
        self.work, self.subject, self.takes_turns = work, subject, takes_turns
        self.progress = Progress("Another job is running on this server; this one waits.", 0.0)
        self.result: Result | None = None
        self.error: str | None = None
        self.started = time.monotonic()
        self._passed: deque[tuple[float, float]] = deque()
        """When how much was done: the first is the last of the first half of the time so far."""
        self.limits = access().limits
        context = get_script_run_ctx()
        self.visitor = "" if context is None else context.session_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Job[Subject, Result]:
        """Begin, unless this server has too much to do already."""
        with _COUNTING:
            alike = [job for job in _ALIVE if job.running and job.takes_turns is self.takes_turns]
            own = sum(job.visitor == self.visitor for job in alike)
            if len(alike) >= self.limits.jobs:
                self.error = "This server has as much to do as it takes on. Try again in some minutes."
                return self
            if own >= max(1, self.limits.jobs / SHARE):
                self.error = "It does as much for you already as for one visitor at a time. Wait for what runs."
                return self
            _ALIVE.add(self)
            self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> None:
        if self.running:
            self._thread.join(seconds)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def seconds_left(self) -> float | None:
        """From the pace of the later half of the time so far, since work begins with what is quicker, such as reading;
        None until there is one.
        """
        share, now = self.progress.fraction, time.monotonic()
        since, done = self._passed[0] if self._passed else (self.started, 0.0)
        return (now - since) * (1 - share) / (share - done) if share > max(0.05, done) else None

    def _update(self, progress: Progress) -> None:
        self.progress, now = progress, time.monotonic()
        if not self._passed or now > self._passed[-1][0] + BETWEEN:
            self._passed.append((now, progress.fraction))
        while len(self._passed) > 1 and self._passed[1][0] <= (self.started + now) / 2:
            self._passed.popleft()

    def _must_stop(self) -> bool:
        if not self.stopping and time.monotonic() - self.started > 60 * self.limits.job_minutes:
            self.error = (
                f"Stopped after {self.limits.job_minutes:g} minutes, the longest that this server works on one thing."
            )
            self.stop()
        return self.stopping

    def _run(self) -> None:
        if self.takes_turns and not TURNS.take(self.visitor, self._stop.is_set):
            return
        try:
            self.started, self.progress = time.monotonic(), Progress("Starting", 0.0)
            self.result = self.work(Reporter(self._update, self._must_stop))
        except Stopped:
            return
        except Exception as error:
            self.error = sentence(error)
        finally:
            if self.takes_turns:
                TURNS.give()


def sentence(error: Exception) -> str:
    """What a page says of an error: never a traceback; that is in the log."""
    here = access()
    if isinstance(error, LoLError):
        return inert(here.text(str(error)))
    logging.getLogger(__name__).error("A job failed", exc_info=error)
    what = f"An unexpected {type(error).__name__}" + ("" if here.served else f": {inert(str(error))}")
    return f"{what}. The server's log has the details."


def running(job: Job[Subject, Result] | None) -> bool:
    return job is not None and job.running
