"""Fits as lines of a file: what was measured under the same conditions is found again."""

from __future__ import annotations

import json
import os
from math import inf
from pathlib import Path
from typing import Any

import orjson

from lol_core.collections.durable import null_is_nan

Scores = dict[str, float]
Line = dict[str, Any]
WRITTEN = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
"""JSON has neither NaN nor infinity: orjson writes null for both."""


class Kept:
    """Lines of a JSON Lines file that were found under the conditions `about`; those found under others are left
    aside.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.about = path, json.loads(json.dumps(about))
        self._read: tuple[tuple[int, int], list[dict[str, Any]]] = ((0, 0), [])

    def lines(self) -> list[dict[str, Any]]:
        """Those that are whole: a machine that stopped may have left half of one. Parsed again when the file has
        changed.
        """
        if not self.path.is_file():
            return []
        stat = self.path.stat()
        state = (stat.st_size, stat.st_mtime_ns)
        if self._read[0] != state:
            parsed = map(_parsed, self.path.read_text().splitlines())
            self._read = state, [line for line in parsed if line is not None and line["about"] == self.about]
        return self._read[1]

    def add(self, **line: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                file.write(b"\n")
            file.write(orjson.dumps(line | {"about": self.about}, option=WRITTEN))
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the file. Null stands for NaN in a score, and in a validation loss for infinity: that of a training
    that diverged. Earlier lines spell both out.
    """
    try:
        parsed = dict(json.loads(line))
    except ValueError:
        return None
    if "scores" in parsed:
        parsed["scores"] = null_is_nan(parsed["scores"])
    if parsed.get("validation_loss", 0.0) is None:
        parsed["validation_loss"] = inf
    return parsed


def line_of(
    model: str,
    seed: int,
    scores: Scores,
    setting: dict[str, Any] | None = None,
    *,
    validation_loss: float = 0.0,
    **more: Any,
) -> Line:
    return {
        "model": model,
        "seed": seed,
        "setting": setting,
        "validation_loss": validation_loss,
        "scores": scores,
        **more,
    }
