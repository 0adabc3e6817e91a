"""What the models offered for a collection say of it: asked beside the page once, and kept."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.collections.source import Source
from lol_core.insight.predictions import Predictions
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from ui import work
from ui.keys import key
from ui.progress import follow
from ui.state import load_checkpoint, session

KEPT = 16
"""Models whose answers a session keeps."""
KEPT_TABLES = 4
"""Targets of a model whose predictions are kept beside the truth, across sessions."""
SOON = 2.0
"""Seconds for which a page waits before it shows how far a model is."""


def answers_of(source: Source, folder: Path) -> Answers | None:
    """What a checkpoint says of every LoRA; None, with the progress in its place, as long as that is not known. One
    model is asked at a time, the one that was wanted last.
    """
    model, asked = load_checkpoint(folder), session().answers
    place = str(folder), model.created, source.fingerprint
    if place not in asked:
        for other in [other for other, job in asked.items() if job.running]:
            asked.pop(other).stop()
        for oldest in [*asked][: 1 - KEPT]:
            del asked[oldest]
        asked[place] = work.predict(source, folder, model)
        with st.spinner("Predicting every LoRA …"):
            asked[place].wait(SOON)
    job = asked[place]
    if job.result is None:
        follow(job, f"stop_predicting_{folder.name}")
        if not job.running and st.button("Predict", icon=":material/play_arrow:", key=key(f"predict_{folder.name}")):
            del asked[place]
            st.rerun()
    return job.result


@st.cache_resource(max_entries=KEPT_TABLES, show_spinner=False)
def _predictions(
    model: str, fingerprint: str, labels: str, target: str, _model: Checkpoint, _source: Source, _answers: Answers
) -> Predictions:
    return Predictions.of(_model, _source, _answers, target)


def predictions_of(source: Source, model: Checkpoint, answers: Answers, target: str) -> Predictions:
    """One target's, made once."""
    place = f"{model.folder} {model.created}"
    return _predictions(place, source.fingerprint, source.labels_digest, target, model, source, answers)
