"""LoRAs that are the same function."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from lol_core.collections.source import Source
from lol_core.core.geometry import same_function
from lol_core.core.progress import SILENT, Reporter
from lol_core.insight.neighbours import BLOCK, within
from lol_core.insight.survey import Survey

SAME = 1e-2
"""‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖ up to which two LoRAs count as the same function: bfloat16 rounds by about 4e-3."""

LOADED = 8
"""LoRAs that are kept in memory while others are compared with them."""


def duplicates(
    zoo: Source,
    surveys: dict[str, Survey],
    tolerance: float = SAME,
    reporter: Reporter = SILENT,
) -> pd.DataFrame:
    """LoRAs that are the same function, whatever their file, names, factors, dtype or padded rank: a row for each, with
    columns group, lora, identical.

    Equal content is the same function; among different contents sketches find the candidates, and
    `geometry.same_function` decides. identical: whether the file's content is that of another member of its group.
    When the reporter says to stop, the pairs found so far are what is returned.
    """
    ids = [id for id, survey in surveys.items() if survey.problem is None and survey.norm > 0 and id in zoo.by_id]
    if len(ids) < 2:
        return pd.DataFrame(columns=["group", "lora", "identical"])
    entries = [zoo.by_id[id] for id in ids]
    table = pd.DataFrame({"lora": ids, "content": [e.content for e in entries], "digest": [e.digest for e in entries]})
    contents = table.drop_duplicates("content", ignore_index=True)
    sketches = np.stack([surveys[id].sketch for id in contents["lora"]])
    directions = sketches / np.linalg.norm(sketches, axis=1, keepdims=True)
    root = np.arange(len(contents))
    load = lru_cache(LOADED)(zoo.load)  # those that are like one another follow each other
    for i, (id, near) in enumerate(zip(contents["lora"], within(directions, 4 * tolerance), strict=True)):
        if reporter.stopping:
            break
        if i % BLOCK == 0:
            reporter.count("Comparing updates: LoRA", i, len(contents))
        for j in np.unique(root[near[near < i]]):
            if same_function(load(contents["lora"][j]), load(id), tolerance):
                root[i] = j
                break
    table["group"] = table["content"].map(dict(zip(contents["content"], root, strict=True)))
    table = table[table.groupby("group")["lora"].transform("size") > 1].copy()
    table["identical"] = table.duplicated(["group", "digest"], keep=False)
    table["group"] = table["group"].rank(method="dense").astype(int)
    return table.sort_values(["group", "lora"])[["group", "lora", "identical"]].reset_index(drop=True)
