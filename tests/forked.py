"""Scripts in processes of their own that begin with PyTorch and its like imported, which takes longer than most."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

IMPORTED = ["torch", "pandas", "scipy.stats", "sklearn.ensemble", "plotly.express", "streamlit.testing.v1"]
"""Nothing of ours, which a script may import from another folder, and nothing that reads a script's environment."""


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
