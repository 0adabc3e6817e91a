"""The zoos of W2T (Weight2Token): `hf://datasets/Xiaolong-Han/w2t-diffusion-celeba-lora`, CUB by the same code,
`w2t-llm-goemotions-lora`, `w2t-llm-arc-easy-lora` and `w2t-llm-ood-retrieval-benchmark`.

Written from their code, and tested on zoos made the same way; never run on the data sets themselves. Their
`manifest.json` says where the files came from and is not relied on. Paths in their tables are of the authors' machines
and are joined by their last part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson
import pandas as pd

from lol_core.collections.layouts.beside import Beside, Labels, folder_of, json_object, only

_IMAGES = re.compile(r"(model_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)_(\d+))/unet/adapter_model\.safetensors$")
_TRIAL = re.compile(r"(?:^|/)(trial_\d+)/\1\.safetensors$")
_EMOTION = re.compile(r"(?:^|/)lora_[^/]+\.safetensors$")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
PROMPTS = ("celebrity", "person", "human", "face")
_SETTINGS = ("seed", "learning_rate", "max_train_steps", "lora_r")
_TABLES = (("celeba_labels.csv", "celeb_folder", "celeb_"), ("cub_labels.csv", "cub_folder", "cub_"))
_PLACES = ("sidecar_config", "run_id", "run_name")


def is_images(ids: Sequence[str]) -> bool:
    return bool(ids) and all(_IMAGES.search(id) for id in ids)


def images(beside: Beside) -> pd.DataFrame:
    """Faces or birds: attributes by the number that a folder ends in (`celeba_labels.csv`, `cub_labels.csv`), the run's
    settings (`results.csv`, else the indices in the name) and the split.
    """
    split = beside.splits(lambda id: folder_of(id, 2))
    attributes = _by_number(beside)
    runs = _keyed(beside.table("results.csv"), "run_name")
    labels: Labels = {}
    for id in beside.ids:
        match = _IMAGES.search(id)
        if not match:
            continue
        run, (seed, rate, steps, accumulation, prompt, subject) = match[1], map(int, match.groups()[1:])
        labels[id] = {
            "seed_index": str(seed),
            "learning_rate": RATES[rate] if rate < len(RATES) else None,
            "steps_index": str(steps),
            "gradient_accumulation": accumulation + 1,
            "prompt": PROMPTS[prompt] if prompt < len(PROMPTS) else None,
            "subject": f"subject {subject}",
            "split": split.get(id),
        }
        named = {name: value for name, value in runs.get(run, {}).items() if name in _SETTINGS}
        labels[id] |= named | attributes.get(subject, {})
    return beside.frame(labels)


def _by_number(beside: Beside) -> dict[int, dict[str, Any]]:
    """The number of a subject → its 0/1 attributes."""
    for name, column, beginning in _TABLES:
        table = beside.table(name)
        if table is None or column not in table.columns:
            continue
        numbers = table[column].astype(str).str.removeprefix(beginning)
        values = table[[c for c in table.columns if set(table[c].dropna().unique()) <= {0, 1} and c != column]]
        rows: list[dict[str, Any]] = values.to_dict("records")  # type: ignore[assignment]  # its stubs allow any key
        return {int(n): row for n, row in zip(numbers, rows, strict=True) if n.isdigit()}
    return {}


def is_emotions(beside: Beside) -> bool:
    return bool(beside.ids) and all(map(_EMOTION.search, beside.ids)) and _last(beside.names, "labels.json") is not None


def emotions(beside: Beside) -> pd.DataFrame:
    """One 0/1 column an emotion, from `label_vector` in the order of `labels.json`; losses, settings, and the text's
    hash to group by.
    """
    names = json_object(beside.find("labels.json")).get("label_names")
    frame = _tables(beside)
    if "label_vector" in frame.columns:
        vectors = frame.pop("label_vector").map(_vector)
        for i, name in enumerate(names if isinstance(names, list) else ()):
            frame[str(name)] = vectors.map(lambda vector, i=i: vector[i] if i < len(vector) else None)
    return frame


def _vector(text: object) -> list[Any]:
    try:
        vector = orjson.loads(text) if isinstance(text, str) else None
    except ValueError:
        return []
    return vector if isinstance(vector, list) else []


def is_trials(ids: Sequence[str]) -> bool:
    return bool(ids) and all(_TRIAL.search(id) for id in ids)


def trials(beside: Beside) -> pd.DataFrame:
    """Settings and test scores, from the table whose `safetensors_path` names the file, else from `metrics.json`."""
    frame = _tables(beside)
    if frame.shape[1]:
        return frame
    measured = {id: f"{id.rpartition('/')[0]}/metrics.json" for id in beside.ids}
    beside.fetch(measured.values())
    return beside.frame({id: _numbers(beside.read(name)) for id, name in measured.items()})


def _tables(beside: Beside) -> pd.DataFrame:
    """The table of the collection that names most of its files, joined by the last part of their paths; what differs
    between LoRAs of it.
    """
    owners = only({id: id.rpartition("/")[2] for id in beside.ids})
    best = pd.DataFrame(index=list(beside.ids))
    for name in beside.names:
        table = beside.table(name.rpartition("/")[2]) if name.endswith(".csv") else None
        if table is None or "safetensors_path" not in table.columns:
            continue
        owner = table["safetensors_path"].astype(str).str.replace("\\", "/").str.rpartition("/")[2].map(owners)
        joined = table[owner.notna() & ~owner.duplicated()].set_index(owner[owner.notna() & ~owner.duplicated()])
        paths = [c for c in joined.columns if c.endswith(("_path", "_dir")) or c in _PLACES]
        joined = joined.drop(columns=paths).dropna(axis=1, how="all")
        if len(joined) > best.dropna(how="all").shape[0]:
            best = joined.rename_axis(None).reindex(list(beside.ids))
    return best


def _numbers(content: bytes | None) -> dict[str, Any]:
    return {k: v for k, v in json_object(content).items() if isinstance(v, int | float)}


def _keyed(table: pd.DataFrame | None, column: str) -> dict[str, dict[str, Any]]:
    if table is None or column not in table.columns:
        return {}
    rows: list[dict[str, Any]] = table.drop_duplicates(column).to_dict("records")  # type: ignore[assignment]  # its stubs allow any key
    return {str(row.get(column)): row for row in rows}


def _last(names: Sequence[str], name: str) -> str | None:
    return next((path for path in names if path.rpartition("/")[2] == name), None)
