"""The tags in the captions that a LoRA was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd


def tag_counts(metadata: Mapping[str, Any]) -> pd.Series:
    """How often each tag stands in the captions a kohya LoRA was trained on (`ss_tag_frequency`, summed over its
    folders), the most frequent first.
    """
    frequencies = metadata.get("ss_tag_frequency")
    try:
        folders = json.loads(frequencies) if isinstance(frequencies, str) else frequencies
    except ValueError:
        folders = None
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return pd.Series(counts, dtype=int, name="count").sort_values(ascending=False, kind="stable")
