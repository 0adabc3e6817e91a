"""The zoos of *Learning on LoRAs*, as their authors publish them: `hf://datasets/moeputterman/LearningOnLoRAs`, four
sets of zips.

Written from their code and lists, and tested on zoos made the same way; never run on the downloads themselves. The
learning rate of the CelebA zoo stays an index: script and paper disagree on what index 1 was. Which bit is which class
of Imagenette is not published. The language models' hyperparameters stand in `hparams.csv` of the authors' code, which
is found in the collection, or beside the archive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lol_core.collections.layouts.beside import Beside, Labels, folder_of, number, saved

_FACE = re.compile(r"model_(\d+)_(\d+)_(\d+)_(\d+)_(\d+)/unet/adapter_model\.safetensors$")
_SUBSET = re.compile(r"model_\w*?_?([01]{10})_(\d+)/unet/adapter_model\.safetensors$")
_NUMBERED = re.compile(r"(\d+)/adapter_model\.(?:bin|safetensors)$")
STEPS = (100, 133, 167, 200)
ACCUMULATION = (1, 2, 1, 2)
PROMPTS = ("celebrity", "person", "thing", "skd")
ATTRIBUTES = ("Male", "Young", "Wearing_Lipstick", "Big_Lips", "No_Beard")
BITS = tuple(f"bit_{i}" for i in range(10))
SOURCES = tuple(
    "MCAS NYSEDREGENTS TIMSS ACTAAP NCEOGA MDSA VASoL AKDE&ED CSZ MEA LEAP NAEP MSA OHAT AIMS TAKS MEAP FCAT"
    " WASL".split()
)
"""Of ARC's questions, that a LoRA may have been trained without."""


def is_celeba(ids: Sequence[str]) -> bool:
    return bool(ids) and all(_FACE.search(id) for id in ids)


def celeba(beside: Beside) -> pd.DataFrame:
    """clip_score (raw), the settings in the name, the person (to group by), the authors' split, and five attributes
    where the CelebA table and the people's pictures are there.
    """
    split = beside.splits(lambda id: folder_of(id, 2))
    attributes = _attributes(beside)
    labels: Labels = {}
    beside.fetch(map(_score_of, beside.ids))
    for id in beside.ids:
        rate, steps, accumulation, prompt, person = map(int, _matched(_FACE, id))
        score = saved(beside.read(_score_of(id)))
        labels[id] = {
            "clip_score": float(score) if isinstance(score, int | float) else float("nan"),
            "learning_rate_index": str(rate),
            "steps": _at(STEPS, steps),
            "gradient_accumulation": _at(ACCUMULATION, accumulation),
            "prompt": _at(PROMPTS, prompt),
            "person": f"celeb_{person}",
            "split": split.get(id),
        } | attributes.get(person, {})
    return beside.frame(labels)


def _score_of(id: str) -> str:
    return id.removesuffix("unet/adapter_model.safetensors") + "score"


def _attributes(beside: Beside) -> dict[int, dict[str, int]]:
    """person → attribute → whether most of their pictures have it (mean of −1 and 1 at least 0)."""
    table = beside.table("list_attr_celeba.csv")
    if table is None or not set(ATTRIBUTES) <= set(table.columns):
        return {}
    pictures: dict[int, list[int]] = {}
    for name in beside.names:
        if match := re.search(r"(?:^|/)celeb_(\d+)/0*(\d+)\.jpg$", name):
            pictures.setdefault(int(match[1]), []).append(int(match[2]) - 1)
    known = {person: [row for row in rows if row < len(table)] for person, rows in pictures.items()}
    return {
        person: {name: int(table[name].iloc[rows].mean() >= 0) for name in ATTRIBUTES}
        for person, rows in known.items()
        if rows
    }


def is_imagenette(ids: Sequence[str]) -> bool:
    return bool(ids) and all(_SUBSET.search(id) for id in ids)


def imagenette(beside: Beside) -> pd.DataFrame:
    """bit_0 … bit_9: whether the images of a class were trained on; their number; the subset (to group by); the run."""
    labels: Labels = {}
    for id in beside.ids:
        bits, run = _matched(_SUBSET, id)
        labels[id] = dict(zip(BITS, map(int, bits), strict=True)) | {
            "classes": bits.count("1"),
            "subset": f"bits {bits}",
            "run": int(run),
        }
    return beside.frame(labels)


def is_arc(beside: Beside) -> bool:
    ids = beside.ids
    if not ids or not all(_NUMBERED.search(id) for id in ids):
        return False
    return beside.read(f"{ids[0].rpartition('/')[0]}/ARC-Challenge-Acc.txt") is not None


def arc(beside: Beside) -> pd.DataFrame:
    """Accuracy and loss, and, where `hparams.csv` is found, settings and used_SOURCE: 1 unless the source was left
    out. Its rows are joined by the number that a folder's name ends in, counted from 0 without the header.
    """
    settings = beside.table("hparams.csv")
    labels: Labels = {}
    measured = ("ARC-Challenge-Acc.txt", "eval_loss.txt")
    beside.fetch(f"{id.rpartition('/')[0]}/{name}" for id in beside.ids for name in measured)
    for id in beside.ids:
        folder = id.rpartition("/")[0]
        (index,) = map(int, _matched(_NUMBERED, id))
        labels[id] = {
            "arc_challenge_accuracy": number(beside.read(f"{folder}/ARC-Challenge-Acc.txt")),
            "eval_loss": number(beside.read(f"{folder}/eval_loss.txt")),
        }
        if settings is None or index >= len(settings):
            continue
        row: dict[str, Any] = {str(k): v for k, v in settings.iloc[index].items()}
        omitted = str(row.pop("filter_sources", "")).split("|")
        labels[id] |= row | {f"used_{name}": int(name not in omitted) for name in SOURCES}
    return beside.frame(labels)


def _matched(pattern: re.Pattern[str], id: str) -> tuple[str, ...]:
    match = pattern.search(id)
    return match.groups() if match else ()


def _at(values: Sequence[object], index: int) -> object:
    return values[index] if index < len(values) else None
