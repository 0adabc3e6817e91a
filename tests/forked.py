"""Scripts in processes of their own that begin with PyTorch and its like imported, which takes longer than most."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

IMPORTED = [
    "torch._dynamo",  # optimisers import it
    "pandas",
    "scipy.stats",
    "sklearn.ensemble",
    "plotly.express",
    "streamlit.testing.v1",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "peft",
]
"""Nothing of ours, which a script may import from another folder."""


def run_forked(script: str, folder: Path, environment: Mapping[str, str], output: Path) -> int | None:
    """The script as `python -c` would run it in the folder, which it imports from first; its exit code. What it prints
    goes to `output`.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    process = forks.Process(target=_run, args=(script, str(folder), dict(environment), str(output)))
    process.start()
    process.join()
    return process.exitcode


def run_anew(script: str, folder: Path, environment: Mapping[str, str], output: Path) -> int | None:
    """The same in a process that has imported nothing yet."""
    command = [sys.executable, "-c", script]
    with open(output, "w") as printed:
        return subprocess.run(command, cwd=folder, env=dict(environment), stdout=printed, stderr=printed).returncode


def _run(script: str, folder: str, environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = ["-c"]
    with open(output, "w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    exec(script, {"__name__": "__main__"})
