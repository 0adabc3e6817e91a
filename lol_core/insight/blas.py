"""NumPy's BLAS in one thread, for products so thin that more threads wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

_controller = cache(ThreadpoolController)  # looks through all libraries that are loaded
_lock, _limit = Lock(), ExitStack()
_inside = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """The number of threads is the process's: of several inside at once the first sets it, the last gives it back."""
    global _inside
    with _lock:
        if not _inside:
            _limit.enter_context(_controller().limit(limits=1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.close()
