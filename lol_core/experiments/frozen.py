"""Code and settings as they stood before the LoRAs that they are judged on were made: a digest of every file, and the
settings that were chosen on the committed zoos. Written by `python -m lol_core.experiments.frozen benchmarks/fits
holdout-2`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lol_core.errors import DataMissingError

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "learning", "finetuning")
FILES = (
    *("curve", "frozen", "holdout_readings", "kernel", "models", "question", "search", "trials"),
    *("table2", "table3", "table4", "table5"),
)
"""Rooms whose every file decides what is trained, and files of the experiments that do."""


@dataclass(frozen=True)
class Frozen:
    """files: path in the package → SHA-256 of what it holds; settings: question → model → its setting at each split."""

    files: Mapping[str, str]
    settings: Mapping[str, Mapping[str, list[dict[str, Any]]]]

    @property
    def digest(self) -> str:
        """Of everything: 16 digits."""
        return _digest(json.dumps([dict(self.files), self.settings], sort_keys=True).encode())[:16]

    def changed(self) -> set[str]:
        """Files that are no longer, or not yet, as they were."""
        now = digests()
        return {name for name in {*now, *self.files} if now.get(name) != self.files.get(name)}

    @classmethod
    def read(cls, path: Path) -> Frozen:
        """Raises DataMissingError when nothing was frozen there."""
        try:
            kept = json.loads(path.read_text())
            return cls(kept["files"], kept["settings"])
        except (OSError, ValueError, KeyError) as error:
            raise DataMissingError(
                f"{path}: no frozen design there ({error}). It is committed in benchmarks/fits: give that folder with"
                " --fits."
            ) from error

    def write(self, path: Path) -> None:
        kept = {"digest": self.digest, "files": dict(self.files), "settings": self.settings}
        path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def digests() -> dict[str, str]:
    """Of the files as they are now."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    paths += [ROOT / "experiments" / f"{name}.py" for name in FILES]
    return {path.relative_to(ROOT).as_posix(): _digest(path.read_bytes()) for path in paths}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def freeze(samples: Path, folder: Path, name: str) -> Frozen:
    """The code as it is, and what the fits in `folder` chose."""
    from lol_core.experiments.context import Context
    from lol_core.experiments.holdout_readings import EXAMS, TRAININGS
    from lol_core.experiments.models import ASKED

    exam = EXAMS[name]
    searched = [judged.variant.name for judged in exam.judged if judged.variant.fixed is None]
    context, settings = Context(samples, folder), {}
    for question, _ in ASKED.values():
        chosen = context.trials(question, searched, TRAININGS).chosen()
        settings[question.name] = {
            name: [line["setting"] for line in sorted(chosen, key=lambda line: line["seed"]) if line["model"] == name]
            for name in searched
        }
    frozen = Frozen(digests(), settings)
    frozen.write(folder / exam.frozen)
    return frozen


if __name__ == "__main__":
    print(freeze(Path("sample_loras"), Path(sys.argv[1]), sys.argv[2]).digest)
