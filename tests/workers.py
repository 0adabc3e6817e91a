"""Zoos made in this process, where it is not the processes that are tested: each would import diffusers and
peft anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from lol_core.learning.executor import Serial


def _threads(workers: int, context: object) -> Executor:
    return ThreadPoolExecutor(workers)


@contextmanager
def in_threads() -> Iterator[None]:
    with ExitStack() as patches:
        patches.enter_context(patch("lol_core.finetuning.machine.runner", lambda machine: Serial()))
        for module in ("pictures", "picture_data"):
            patches.enter_context(patch(f"lol_core.finetuning.{module}.ProcessPoolExecutor", _threads))
        yield
