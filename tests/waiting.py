"""How long a test waits for what must come: until it is there. Only what hangs is ended by PATIENCE."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = 300.0 * float(os.environ.get("LOL_TEST_PATIENCE", "1"))
"""Seconds, for everything that a test waits for. LOL_TEST_PATIENCE multiplies it on a machine that is slower still."""


def until(condition: Callable[[], object], what: str) -> None:
    """Return when the condition holds; an AssertionError naming `what` when PATIENCE is at its end."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not in {PATIENCE:.0f} s"
        time.sleep(0.05)
