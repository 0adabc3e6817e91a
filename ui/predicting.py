"""Predictions of the models offered for a collection, computed once."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.insight.novelty import Known
from ui.jobs import sentence
from ui.state import load_checkpoint

BLOCK = 64
"""LoRAs read at a time."""


@st.cache_data(max_entries=16, show_spinner="Predicting every LoRA …")
def _predictions(folder: Path, created: str, fingerprint: str, _source: Source) -> tuple[pd.DataFrame, dict[str, str]]:
    return load_checkpoint(folder).predict_zoo(_source)


@st.cache_resource(max_entries=8, show_spinner="Reading what the model was trained on …")
def _known(folder: Path, created: str, fingerprint: str, _source: Source) -> Known:
    return Known.of(load_checkpoint(folder), _source)


@st.cache_data(max_entries=8, show_spinner="Looking for LoRAs unlike those it was trained on …")
def _outside(folder: Path, created: str, fingerprint: str, ids: tuple[str, ...], _source: Source) -> pd.Series:
    known = known_to(_source, folder)
    blocks = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
    parts = [known.strangeness([_source.load(id) for id in block]) for block in blocks]
    return pd.concat(parts, ignore_index=True).set_index(pd.Index(ids))["outside"]


def predictions_of(source: Source, folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """What a checkpoint predicts of every LoRA, and why of some it does not: see `Checkpoint.predict_zoo`."""
    return _predictions(folder, load_checkpoint(folder).created, source.fingerprint, source)


def known_to(source: Source, folder: Path) -> Known:
    """The LoRAs that a checkpoint was trained on. Raises TaskError when too few are here."""
    return _known(folder, load_checkpoint(folder).created, source.fingerprint, source)


def remark(source: Source, folder: Path, lora: LoRA) -> str:
    """Whether a LoRA is like those that a checkpoint was trained on, or why that cannot be told."""
    try:
        return known_to(source, folder).remark(lora)
    except LoLError as error:
        return sentence(error)


def outside(source: Source, folder: Path, ids: tuple[str, ...]) -> pd.Series:
    """Whether each LoRA is unlike those of the training. Raises LoLError."""
    return _outside(folder, load_checkpoint(folder).created, source.fingerprint, ids, source)
