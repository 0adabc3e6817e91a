"""What the models offered for a collection say of it, computed once."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.collections.source import Source
from lol_core.learning.answers import Answers
from ui.state import load_checkpoint


@st.cache_data(max_entries=16, show_spinner="Predicting every LoRA …")
def _answers(folder: Path, created: str, fingerprint: str, _source: Source) -> Answers:
    return Answers.of(load_checkpoint(folder), _source)


def answers_of(source: Source, folder: Path) -> Answers:
    """What a checkpoint says of every LoRA."""
    return _answers(folder, load_checkpoint(folder).created, source.fingerprint, source)
