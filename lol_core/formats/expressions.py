"""Regular expressions that anyone may have written, by `regex`: they can be given up, and hold up no other thread."""

from __future__ import annotations

from math import prod
from typing import Any

import regex

MAX_LENGTH = 10_000
MAX_REPEATS = 1_000
"""Characters, and counted repetitions of repetitions: compiling takes as long as these are many."""
_COUNTS = regex.compile(r"(?<=[{,])\s*(\d{1,9})")


def compiled(expression: str, flags: int = 0) -> Any:
    """The expression, to be matched with a timeout. Raises ValueError, with the reason, when it is none or longer than
    any needs to be.
    """
    if len(expression) > MAX_LENGTH or prod(int(n) for n in _COUNTS.findall(expression) if int(n)) > MAX_REPEATS:
        raise ValueError("longer than any needs to be")
    try:
        return regex.compile(expression, flags)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
