"""Where the program keeps what it computed."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from lol_core.errors import ZooError


def cache_folder() -> Path:
    """Where indexes and trained models are kept: LOL_CACHE_DIR, or the user's cache directory."""
    return Path(os.environ.get("LOL_CACHE_DIR") or user_cache_path("lol-explorer", appauthor=False))


def bytes_allowed() -> int:
    """How much one collection may put into a cache, unpacked or downloaded: LOL_CACHE_LIMIT_GB, or 20 GB."""
    return bytes_set("LOL_CACHE_LIMIT_GB", 20)


def bytes_set(variable: str, gigabytes: float) -> int:
    """A limit that an environment variable sets, in bytes. Raises ZooError where it is no number."""
    value = os.environ.get(variable) or str(gigabytes)
    try:
        return int(float(value) * 10**9)
    except (ValueError, OverflowError) as error:
        raise ZooError(f"{variable} is {value!r}; expected a number of gigabytes, such as 50.") from error
