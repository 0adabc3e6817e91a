"""Whose work is next where many visitors wait for one machine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

LOOK_S = 0.5
"""Seconds between two looks of one who waits at whether it should still wait."""


class Turns:
    """One turn at a time. It goes to the visitor among those that wait whose last turn was the longest ago, so that one
    with much to do holds up nobody for longer than one turn; of a visitor's own, and among new ones, to the first.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self.waiting: dict[int, str] = {}
        """Number → visitor, in the order in which they came."""
        self._last: dict[str, int] = {}  # visitor → number of the last turn, where it bears on who is next
        self._taken = False

    def take(self, visitor: str, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Wait for a turn; whether it came before the wait should stop. Whoever has it must `give` it back."""
        with self._changed:
            own = next(self._numbers)
            self.waiting[own] = visitor
            while self._taken or self._next() != own:
                if stopping():
                    del self.waiting[own]
                    self._changed.notify_all()
                    return False
                self._changed.wait(LOOK_S)
            del self.waiting[own]
            self._taken = True
            self._last[visitor] = latest = next(self._numbers)
            oldest = min((self._last.get(name, 0) for name in self.waiting.values()), default=latest)
            self._last = {name: last for name, last in self._last.items() if last >= oldest}
            return True

    def give(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def _next(self) -> int:
        return min(self.waiting, key=lambda number: (self._last.get(self.waiting[number], 0), number))
