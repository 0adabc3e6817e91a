"""Reading the weights of a collection beside the page: begun unasked where that is cheap."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from ui import work
from ui.jobs import Job
from ui.keys import key
from ui.progress import follow
from ui.state import session

READ_UNASKED = 300_000_000
"""Bytes of a collection up to which its weights are read without asking."""
WeightsJob = Job[str, pd.DataFrame | None]


def weights_job(source: Source, n_read: int) -> tuple[WeightsJob | None, pd.DataFrame | None]:
    """The job that reads this collection's weights, None where it has not begun; and the LoRAs that are the same
    function, None until all are compared.
    """
    state = session()
    job = state.survey if state.survey is not None and state.survey.subject == source.fingerprint else None
    small = sum(entry.size for entry in source.entries) <= READ_UNASKED
    if job is None and len(source) and source.fingerprint not in state.same and (small or n_read == len(source)):
        state.survey = job = work.read_weights(source)
        job.wait(0.3)  # where all was read before, the answer is there at once
    if job is not None and job.result is not None:
        state.same[source.fingerprint] = job.result
    return job, state.same.get(source.fingerprint)


def survey_line(source: Source, job: WeightsJob | None, n_read: int) -> None:
    """The progress of reading the weights, or a button that begins or goes on."""
    if job is not None:
        follow(job, "stop_survey")
    elif n_read < len(source):
        st.caption(
            f"The weights of {len(source) - n_read:,} LoRAs have not been read: norms, health and duplicates need them."
            " Headers are enough for the rest."
        )
    waiting = n_read < len(source) if job is None else job.stopping and not job.running
    label = "Read the weights" if job is None else "Read the rest of the weights"
    if waiting and st.button(label, icon=":material/search_insights:", key=key("read_weights")):
        session().survey = work.read_weights(source)
        st.rerun()
