"""Wide work on the machines of a Ray cluster."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

import lol_core
from lol_core.errors import LoLError
from lol_core.learning.executor import AHEAD, ATTEMPTS, Lost, set_device

PACKAGE = Path(lol_core.__file__).parent

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ray:
    """On the cluster at `address`, or the one that this machine belongs to, or else one that is started here.

    Every item takes `threads` processors and `gpus` GPUs. Ray itself runs an item again when its worker or its machine
    is lost, and counts machines that join meanwhile. This program is sent along; the files it reads must be in the
    same place on every machine. Raises LoLError when Ray is not installed or the cluster cannot be reached.
    """

    address: str | None = None
    threads: int = 1
    gpus: float = 0

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[tuple[T, R | Lost], None, None]:
        ray = connected(self.address)
        self._check_room(ray.nodes())
        lost = (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.ObjectLostError,
        )
        remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(_on_worker)
        shared = ray.put(function)  # sent once, whatever it holds
        release = _release()
        waiting = iter(items)
        running: dict[Any, T] = {}
        try:
            while True:
                width = max(1, int(ray.cluster_resources().get("CPU", 1) / self.threads)) * AHEAD
                for item in islice(waiting, max(0, width - len(running))):
                    running[remote.remote(release, [shared, ray.put(item)], self.threads)] = item
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
                    except ray.exceptions.RuntimeEnvSetupError as error:
                        raise LoLError(f"A machine of the cluster does not take this program ({error}).") from error
                    yield item, result
        finally:
            for reference in running:
                ray.cancel(reference)

    def _check_room(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Raises LoLError where no machine can take an item, which Ray would wait for in silence."""
        rooms = [node["Resources"] for node in nodes if node["Alive"]]
        if not any(room.get("CPU", 0) >= self.threads and room.get("GPU", 0) >= self.gpus for room in rooms):
            processors = f"{self.threads} processor{'s' * (self.threads > 1)}"
            raise LoLError(
                f"No machine of the cluster has {processors}{' and a GPU' * (self.gpus > 0)}, which each worker takes."
                " Ask for less (--threads, --device), or let one join."
            )


def connected(address: str | None) -> Any:
    """The module `ray`, connected to a cluster; the connection lasts as long as this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise LoLError("Ray is not installed. Install it: pip install -r requirements-cluster.txt.") from error
    if not ray.is_initialized():
        try:
            ray.init(address, runtime_env=_program(), log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise LoLError(
                f"The Ray cluster at {address or 'this machine'} cannot be reached ({error}). Is it running (ray"
                " status), and are Python and Ray of the same versions as here?"
            ) from error
    ray._private.worker.print_to_stdstream = _unheard
    return ray


def _unheard(*_: Any, **__: Any) -> None:
    """In the place of what prints Ray's remarks on lost workers, which no setting keeps out of what `--json` prints."""


def _program() -> dict[str, Any]:
    """What every worker runs: this package as it is here, with the settings of this process."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("LOL_")}
    return {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__"], "env_vars": settings}


@cache
def _release() -> str:
    """A digest of this package, for a number of its version stays while it is written."""
    sources = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(str(p.relative_to(PACKAGE)).encode() + p.read_bytes() for p in sources)).hexdigest()


def _on_worker(release: str, call: list[Any], threads: int) -> Any:
    """What a function gives of an item. call: references to both, which Ray opens no sooner than they are asked for, as
    they stand in a list: in another version of this program it could not.
    """
    import ray
    import torch

    if _release() != release:  # Ray prefers what lies at the path of the process that asks
        raise LoLError(
            f"Another version of this program lies in {PACKAGE.parent} of the machine {gethostname()}. Update it, or"
            " remove it."
        )
    torch.set_num_threads(threads)
    set_device("cuda" if ray.get_gpu_ids() else "cpu")
    function, item = ray.get(call)
    return function(item)
