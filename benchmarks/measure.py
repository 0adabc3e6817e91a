"""How things are measured: against a reference, alternately in one process, so that other work on the machine meets
both alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Clock = Callable[[], float]


@dataclass(frozen=True)
class Claim:
    """Something that is held to be so many times as fast as something else. goal: the least ratio reference / ours;
    ours, reference: the raw samples, taken in turn; against: what the reference is.
    """

    text: str
    goal: float
    ours: list[float]
    reference: list[float]
    against: str
    unit: str = "s of one processor"

    @property
    def ratio(self) -> float:
        """The median of the ratios of samples taken one after the other."""
        return statistics.median(theirs / own for own, theirs in zip(self.ours, self.reference, strict=True))

    @property
    def holds(self) -> bool:
        return self.ratio >= self.goal

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "ratio": self.ratio, "holds": self.holds}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Claim:
        """What `to_dict` gave."""
        return cls(**{name: value for name, value in data.items() if name not in ("ratio", "holds")})


def seconds(call: Callable[[], object], clock: Clock = time.process_time) -> float:
    started = clock()
    call()
    return clock() - started


def alternately(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each, taken in turn, after one round that does not count."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds(call, clock))
    return taken


def exponent(sizes: list[int], times: Mapping[str, list[float]]) -> float:
    """p of the least-squares fit time ~ size^p, by the medians. times: of each size, in their order."""
    medians = [statistics.median(samples) for samples in times.values()]
    return float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])


def machine() -> dict[str, Any]:
    """What it was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory (GB)": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
    }
