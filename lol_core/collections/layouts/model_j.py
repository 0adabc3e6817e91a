"""Model-J of ProbeX: `hf://ProbeX/Model-J__SD_200` and `…__SD_1k`, folders `{split}/model_idx_{n}`.

Written from the cards and their loaders, and tested on folders made the same way; never run on the repositories
themselves. The labels stand in each file's header and card, so no weights are needed; what is called there besides
`imagenet_class_id` was not seen, and every header entry of one word becomes a column. Their other subsets are whole
models, not LoRAs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from lol_core.collections.columns import detailed
from lol_core.collections.layouts.beside import Beside, Labels

SPLITS = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "val_holdout": "validation of unseen classes",
    "test_holdout": "test of unseen classes",
}
_ID = re.compile(r"(?:^|/)(\w+)/model_idx_(\d+)/pytorch_lora_weights\.safetensors$")
_ROW = re.compile(r"^\|\s*([^|]+?)\s*\|\s*([^|]+?)\s*\|\s*$", re.MULTILINE)
_READ = {
    "learning rate": "learning_rate",
    "max train steps": "max_train_steps",
    "lora rank": "lora_rank",
    "seed": "seed",
    "n training samples": "n_training_samples",
    "base model": "base_model",
    "imagenet class": "imagenet_class",
}


def is_model_j(ids: Sequence[str]) -> bool:
    return bool(ids) and all((match := _ID.search(id)) and match[1] in SPLITS for id in ids)


def model_j(beside: Beside) -> pd.DataFrame:
    """The class, hyperparameters from header and card, the index, and the split, which is the folder and no range of
    indices. Holdout splits hold classes that training has not seen.
    """
    labels: Labels = {}
    beside.fetch(map(_card_of, beside.ids))
    for entry in detailed(beside.source):
        match = _ID.search(entry.path)
        header = {
            key: _plain(value)
            for key, value in entry.metadata.items()
            if isinstance(value, str) and key != "format" and len(value) < 100
        }
        card = _card(beside, entry.path)
        place = {"split": SPLITS[match[1]], "model_idx": int(match[2])} if match else {}
        labels[entry.path] = card | header | place
    frame = beside.frame(labels)
    table = beside.table("labels.parquet")
    if table is not None and "hf_model_path" in table.columns:
        by_path = table.drop_duplicates("hf_model_path").set_index("hf_model_path").reindex(frame.index)
        frame = frame.join(by_path[[column for column in by_path.columns if column not in frame.columns]])
    return frame


def _card_of(id: str) -> str:
    return f"{id.rpartition('/')[0]}/README.md"


def _card(beside: Beside, id: str) -> dict[str, object]:
    """The table in the README of a LoRA's folder."""
    text = (beside.read(_card_of(id)) or b"").decode(errors="replace")
    rows = {name.strip("* ").lower(): value.strip("`* ") for name, value in _ROW.findall(text)}
    return {column: _plain(rows[name]) for name, column in _READ.items() if name in rows}


def _plain(value: str) -> object:
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            return value
