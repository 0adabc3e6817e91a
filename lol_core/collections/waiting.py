"""Waiting that ends when the user stops the work it is for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lol_core.core.progress import Reporter, Stopped

STEP_S = 0.1
_STOP: ContextVar[Callable[[], bool]] = ContextVar("stop", default=lambda: False)


@contextmanager
def stopped_by(reporter: Reporter) -> Iterator[None]:
    """What waits in this block ends when the reporter says so."""
    token = _STOP.set(reporter.stop)
    try:
        yield
    finally:
        _STOP.reset(token)


def begin_thread(stop: Callable[[], bool]) -> None:
    """The same for everything that a thread does, which knows nothing of the one that started it."""
    _STOP.set(stop)


def stopping() -> bool:
    """Whether the work of this thread should end."""
    return _STOP.get()()


def wait(seconds: float) -> None:
    """Raises Stopped when the work should end before the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stopping():
            raise Stopped("Stopped while waiting for a server. What was read is kept.")
        time.sleep(min(STEP_S, left))  # in steps: whether to stop is a question, of which no event can be waited for
