"""Commands of a document, run in the interpreter that runs its blocks: a process for each would import torch anew."""

from __future__ import annotations

import runpy
import subprocess
import sys
from contextlib import nullcontext

from tests.workers import in_threads


def run(words: list[str]) -> None:
    """Run the command to its good end; what is Python runs here, as `python -m MODULE …` or `python -c CODE` would."""
    if words[:2] == [sys.executable, "-c"]:
        exec(words[2], {"__name__": "__main__"})
    elif words[:3] == [sys.executable, "-m", "lol_core"]:
        sys.argv = words[2:]
        try:
            with in_threads() if words[3] == "finetune" else nullcontext():
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, f"{' '.join(words)} ended with {end.code}"
    else:
        subprocess.run(words, check=True)
