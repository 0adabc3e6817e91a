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
    value = os.environ.get("LOL_CACHE_LIMIT_GB", "20")
    try:
        return int(float(value) * 10**9)
    except ValueError as error:
        raise ZooError(f"LOL_CACHE_LIMIT_GB is {value!r}; expected a number of gigabytes, such as 50.") from error
