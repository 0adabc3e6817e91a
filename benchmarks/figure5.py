"""Figure 5's largest size, 96 layers of 12,288 × 12,288, run whole: memory and times of every model but Dense, and how
forward passes grow from the smallest size: `python -m benchmarks.figure5`. Synthetic factors, untrained models.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from typing import Any

import torch

from lol_core.experiments.figure5 import FAMILY, shape
from lol_core.experiments.paper import FIVE
from lol_core.experiments.timing import needs, time_model

LIMIT = 24
"""GiB."""
BATCH = 8


def one(model: str, size: str, at_least: float) -> None:
    """Prints what `measured` returns."""
    torch.set_num_threads(1)
    times = time_model(model, shape(size), BATCH, torch.device("cpu"), at_least=at_least)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"preprocess (s)": times.preprocess, "forward (s)": times.forward, "peak (GiB)": peak}))


def measured(model: str, size: str, at_least: float) -> dict[str, float]:
    """Seconds for one LoRA, and the most memory of a process that did nothing else."""
    code = f"from benchmarks.figure5 import one; one({model!r}, {size!r}, {at_least!r})"
    command = [sys.executable, "-c", code]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def report(quick: bool = False) -> dict[str, Any]:
    """For each model: bytes needed by calculation, what was measured, and whether forward passes grow no faster than
    the factors.
    """
    small, large = next(iter(FAMILY)), list(FAMILY)[1 if quick else -1]
    factors = shape(large).spec.parameters / shape(small).spec.parameters
    found: dict[str, Any] = {"factors grow": factors}
    growth: dict[str, Any] = {}
    for model in FIVE:
        need = needs(model, shape(list(FAMILY)[-1]))
        one: dict[str, Any] = {"needed at the largest size (GiB)": (need.weights + BATCH * need.each) / 2**30}
        if one["needed at the largest size (GiB)"] <= LIMIT:
            first, last = (measured(model, size, 0.01 if quick else 0.5) for size in (small, large))
            grown = last["forward (s)"] / first["forward (s)"]
            power = math.log(grown) / math.log(factors)
            one |= {small: first, large: last, "forward grows": grown, "power of the factors": power}
            growth[f"factors, {FIVE[model].title}'s forward pass"] = {"exponent": power, "samples (s)": one}
        found[FIVE[model].title] = one
    return {"report": found, "growth": growth}


if __name__ == "__main__":
    print(json.dumps(report(), indent=1))
