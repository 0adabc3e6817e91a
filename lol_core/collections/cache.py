"""Where the program keeps what it computed."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Where indexes and trained models are kept: LOL_CACHE_DIR, or the user's cache directory."""
    return Path(os.environ.get("LOL_CACHE_DIR") or user_cache_path("lol-explorer", appauthor=False))
