"""Long work beside the page: a thread that never touches streamlit, watched by a fragment. Jobs of all sessions take
turns, but for those that are light.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import LoLError

ONE_AT_A_TIME = threading.Semaphore(1)
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Job[Subject, Result]:
        self._thread.start()
        return self

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
    def seconds_left(self) -> float | None:
        """From the pace so far; None until there is one."""
        share = self.progress.fraction
        return (time.monotonic() - self.started) * (1 / share - 1) if share > 0.05 else None

    def _update(self, progress: Progress) -> None:
        self.progress = progress

    def _run(self) -> None:
        while self.takes_turns and not ONE_AT_A_TIME.acquire(timeout=0.5):
            if self.stopping:
                return
        try:
            self.started, self.progress = time.monotonic(), Progress("Starting", 0.0)
            self.result = self.work(Reporter(self._update, self._stop.is_set))
        except Stopped:
            return
        except Exception as error:
            self.error = sentence(error)
        finally:
            if self.takes_turns:
                ONE_AT_A_TIME.release()


def sentence(error: Exception) -> str:
    """What a page says of an error: never a traceback; that is in the log."""
    if isinstance(error, LoLError):
        return str(error)
    traceback.print_exception(error)
    return f"An unexpected {type(error).__name__}: {error}. The server's log has the details."


def running(job: Job[Subject, Result] | None) -> bool:
    return job is not None and job.running
