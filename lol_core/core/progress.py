"""How long work says how far it is, and learns that it should stop. No thread, no screen: whoever starts it brings
those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lol_core.core.errors import LoLError


class Stopped(LoLError):
    """The user stopped the work. The message says what is kept."""


@dataclass(frozen=True)
class Progress:
    """message: what is being done; fraction: of all work, in [0, 1]; history: what was measured so far, a dict for each
    epoch.
    """

    message: str
    fraction: float
    history: tuple[Mapping[str, float], ...] = ()


class Reporter:
    """Passed down to long work. Without arguments it is silent and never stops.

    on_progress: called with every step; stop: whether the work should end.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], object] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.on_progress, self.stop = on_progress, stop

    def show(self, message: str, fraction: float, history: tuple[Mapping[str, float], ...] = ()) -> None:
        self.on_progress(Progress(message, fraction, history))

    def count(self, words: str, done: int, total: int) -> None:
        """ "Reading LoRA 3 of 40"."""
        self.show(f"{words} {done:,} of {total:,}", done / max(1, total))

    @property
    def stopping(self) -> bool:
        return self.stop()

    def check(self, kept: str) -> None:
        """Raises Stopped, with what is kept, when the work should end."""
        if self.stopping:
            raise Stopped(f"Stopped. {kept}")

    def part(self, start: float, end: float, words: str = "") -> Reporter:
        """A reporter for a part of the work, from one fraction of the whole to another, its messages led by `words`."""

        def scaled(progress: Progress) -> None:
            fraction = start + (end - start) * progress.fraction
            self.on_progress(replace(progress, message=words + progress.message, fraction=fraction))

        return Reporter(scaled, self.stop)

    def item(self, index: int, count: int, words: str = "") -> Reporter:
        """A reporter for one of `count` equal parts of the work, from 0."""
        return self.part(index / count, (index + 1) / count, words)


SILENT = Reporter()
