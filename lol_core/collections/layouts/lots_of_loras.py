"""Lots-of-LoRAs: a repository for each task of Natural Instructions, `hf://Lots-of-LoRAs`.

Written from its names, and tested on repositories named the same way; never run on the hub itself. The task's name is
that of the data set of the same number; the zero padding of the two differs, so they are compared as numbers. Cards and
configurations carry no scores. A third of the LoRAs is said to share one initial A.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from lol_core.collections.hub import repositories_of
from lol_core.collections.hub_address import Kind
from lol_core.collections.layouts.beside import Beside, Labels
from lol_core.errors import ZooError

_ID = re.compile(r"-r(\d+)-task(\d+)/adapter_model\.safetensors$")
_TASK = re.compile(r"task(\d+)_(.+)")
OWNER = "Lots-of-LoRAs"


def is_lots_of_loras(ids: Sequence[str]) -> bool:
    return bool(ids) and all(_ID.search(id) for id in ids)


def lots_of_loras(beside: Beside) -> pd.DataFrame:
    """task: its number; task_name: of the data set, where the hub can be asked."""
    names: dict[int, str] = {}
    if beside.source.address.startswith(f"hf://{OWNER}"):
        try:
            for repository in repositories_of(OWNER, Kind.DATASET):
                if match := _TASK.fullmatch(repository.partition("/")[2]):
                    names[int(match[1])] = match[2]
        except ZooError:
            beside.failed.append("the names of the tasks")  # not there now, so that they are not kept
    labels: Labels = {}
    for id in beside.ids:
        if match := _ID.search(id):
            task = int(match[2])
            labels[id] = {"task": task} | ({"task_name": names[task]} if task in names else {})
    return beside.frame(labels)
