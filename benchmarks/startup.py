"""How long commands take with one small LoRA, where the start is nearly all, beside PyTorch's own import:
`python -m benchmarks.startup`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import Claim, alternately

SAMPLES = Path(__file__).parent.parent / "sample_loras"
LORA = SAMPLES / "glosses" / "loras" / "0001"
CHECKPOINT = SAMPLES / "checkpoints" / "glosses-validation-loss-gl-net"
COMMANDS = {
    "probe": (LORA,),
    "scan": (LORA,),
    "survey": (LORA,),
    "duplicates": (LORA,),
    "predict": ("--checkpoint", CHECKPOINT, LORA),
    "invariance": ("--checkpoint", CHECKPOINT, "--lora", LORA),
}
HELP, ALLOWED = 0.5, 0.5
"""Seconds that `--help` may take, and a command beside PyTorch's import."""


def claims(quick: bool = False) -> list[Claim]:
    with tempfile.TemporaryDirectory() as cache:

        def program(*arguments: object) -> Callable[[], object]:
            command, own = [sys.executable, *map(str, arguments)], {**os.environ, "LOL_CACHE_DIR": cache}
            return partial(subprocess.run, command, env=own, check=True, capture_output=True)

        calls = {"torch": program("-c", "import torch"), "--help": program("-m", "lol_core", "--help")}
        calls |= {name: program("-m", "lol_core", name, *with_) for name, with_ in COMMANDS.items()}
        taken = alternately(calls, 1 if quick else 7, time.perf_counter)
    unit, allowed = "s of the clock", [seconds + ALLOWED for seconds in taken["torch"]]
    asked = Claim("`--help`", 1.0, taken["--help"], [HELP] * len(allowed), f"the {HELP:g} s asked for", unit)
    against = f"PyTorch's import and {ALLOWED:g} s"
    return [asked, *(Claim(f"`{name}` of one LoRA", 1.0, taken[name], allowed, against, unit) for name in COMMANDS)]


def main() -> None:
    for claim in claims():
        print(f"{claim.text}: {claim.ratio:.2f} times as fast as {claim.against}")


if __name__ == "__main__":
    main()
