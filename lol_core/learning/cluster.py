"""Wide work on the machines of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from lol_core.errors import LoLError
from lol_core.learning.executor import AHEAD, ATTEMPTS, Lost, set_device

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ray:
    """On the cluster at `address`, or the one that this machine belongs to, or else one that is started here.

    Every item takes `threads` processors and `gpus` GPUs. Ray itself runs an item again when its worker or its machine
    is lost, and counts machines that join meanwhile. This program and the files it reads must be in the same place on
    every machine. Raises LoLError when Ray is not installed or the cluster cannot be reached.
    """

    address: str | None = None
    threads: int = 1
    gpus: float = 0

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        ray = connected(self.address)
        lost = (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError,
        )
        remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(_on_worker)
        shared = ray.put(function)  # sent once, whatever it holds
        waiting = iter(items)
        running: dict[Any, T] = {}
        try:
            while True:
                width = max(1, int(ray.cluster_resources().get("CPU", 1) / self.threads)) * AHEAD
                for item in islice(waiting, max(0, width - len(running))):
                    running[remote.remote(shared, item, self.threads)] = item
                if not running:
                    return
                done, _ = ray.wait(list(running))
                for reference in done:
                    item = running.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from error
                    except lost:
                        result = Lost.after(ATTEMPTS)
                    yield item, result
        finally:
            for reference in running:
                ray.cancel(reference)


def connected(address: str | None) -> Any:
    """The module `ray`, connected to a cluster; the connection lasts as long as this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise LoLError("Ray is not installed. Install it: pip install -r requirements-cluster.txt.") from error
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise LoLError(
                f"The Ray cluster at {address or 'this machine'} cannot be reached ({error}). Is it running (ray"
                " status), and are Python and Ray of the same versions as here?"
            ) from error
    return ray


def _on_worker(function: Callable[[T], R], item: T, threads: int) -> R:
    import ray
    import torch

    torch.set_num_threads(threads)
    set_device("cuda" if ray.get_gpu_ids() else "cpu")
    return function(item)
