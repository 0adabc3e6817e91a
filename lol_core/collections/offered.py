"""Columns that might serve as labels: what cards, headers, configurations, training states and names say of each LoRA.

All of it is claimed by who wrote it. None of it is joined by itself: whoever wants a column takes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lol_core.collections.columns import detailed
from lol_core.collections.layouts.beside import Beside, json_object
from lol_core.collections.names import MODEL_FILE_NAMES
from lol_core.collections.source import Source
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ZooError

LONGEST = 200
"""Characters of a value; longer ones are texts, no labels."""
CARD = ("base_model", "license", "datasets", "tags", "language", "library_name", "pipeline_tag", "instance_prompt")


def offered(source: Source, reporter: Reporter = SILENT) -> pd.DataFrame:
    """One row a LoRA, indexed by its id; columns that tell some of them apart, named by where they come from:
    "folder 2", "name 3" (part of the last folder's or file's name), "header ss_learning_rate", "training eval_loss",
    "card license".

    Raises Stopped when the reporter says so.
    """
    beside = Beside(source, reporter=reporter)
    names = set(beside.names)
    places = _places(source.ids)
    beside.fetch(name for id in source.ids for name in _beside(id))
    rows: dict[str, dict[str, Any]] = {}
    for done, entry in enumerate(detailed(source)):
        if done % 100 == 0:
            reporter.count("Looking for labels: LoRA", done, len(source))
            reporter.check("Nothing was written.")
        header = {f"header {key}": _plain(value) for key, value in entry.metadata.items()}
        state, readme = (beside.read(place) if place in names else None for place in _beside(entry.path))
        rows[entry.path] = places[entry.path] | _card(readme) | _training(state) | header
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(list(source.ids))
    tell_apart = [name for name, column in table.items() if len(column.dropna().unique()) > 1]
    return table[tell_apart].apply(_numbers)


def described(table: pd.DataFrame) -> list[dict[str, Any]]:
    """For each offered column of how many LoRAs it is known, how many values it has, and the first."""
    return [
        {
            "column": name,
            "known of": int(column.notna().sum()),
            "different": int(column.nunique()),
            "such as": str(column.dropna().iloc[0])[:60],
        }
        for name, column in table.items()
    ]


def _beside(id: str) -> tuple[str, str]:
    """Where the training state and the card of a LoRA would be."""
    folder = id.rpartition("/")[0]
    before = f"{folder}/" if folder else ""
    return f"{before}trainer_state.json", f"{before}README.md"


def take(source: Source, columns: Sequence[str], table: pd.DataFrame) -> pd.DataFrame:
    """The labels of a source with offered columns beside them. Raises ZooError naming a column that is not offered."""
    if unknown := [name for name in columns if name not in table.columns]:
        raise ZooError(
            f"{source.address}: no column {unknown[0]!r} is offered. There are {', '.join(table.columns) or 'none'}."
        )
    if twice := [name for name in columns if name in source.labels.columns]:
        raise ZooError(f"{source.address}: its labels have a column {twice[0]!r} already.")
    return source.labels.join(table[list(columns)])


def _places(ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The folders above each file, and the parts of the name that people know it by."""
    found: dict[str, dict[str, Any]] = {}
    several = len(ids) > 1
    for id in ids:
        *folders, file = id.split("/")
        known = file.rpartition(".")[0] if several else file
        named = [folder for folder in folders if folder not in ("unet", "text_encoder")] or [known]
        parts = re.split(r"[_\-\s]+", named[-1] if known in MODEL_FILE_NAMES else known)
        found[id] = {f"folder {i}": name for i, name in enumerate(folders, 1)}
        found[id] |= {f"name {i}": part for i, part in enumerate(parts, 1)}
    return found


def _training(content: bytes | None) -> dict[str, Any]:
    """What a trainer's last state says: the step, the best metric, and the last of each number that was logged."""
    state = json_object(content)
    logged = state.get("log_history")
    numbers: dict[str, Any] = {}
    for line in logged if isinstance(logged, list) else ():
        numbers |= {k: v for k, v in line.items() if isinstance(v, int | float)} if isinstance(line, dict) else {}
    numbers |= {k: state[k] for k in ("global_step", "best_metric", "epoch") if isinstance(state.get(k), int | float)}
    return {f"training {key}": value for key, value in numbers.items()}


def _card(content: bytes | None) -> dict[str, Any]:
    """The front matter of a model card, and the scores in it."""
    if content is None:
        return {}
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(content.decode(errors="replace"), ignore_metadata_errors=True).data
    except Exception:  # cards are written by hand, and their YAML fails in many ways
        return {}
    known = data.to_dict()
    found = {f"card {key}": _plain(known[key]) for key in CARD if key in known}
    for result in getattr(data, "eval_results", None) or ():
        if isinstance(result.metric_value, int | float):
            found[f"card {result.metric_type}"] = result.metric_value
    return found


def _plain(value: Any) -> Any:
    """One number or a short text; None for what is neither."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    if isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, str) and len(value) <= LONGEST else None


def _numbers(column: pd.Series) -> pd.Series:
    """Texts that are all numbers, as numbers."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().sum() == column.notna().sum() else column
