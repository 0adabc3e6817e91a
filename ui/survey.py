"""Reading the weights of a collection beside the page: begun unasked where that is cheap."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from lol_core.collections.columns import size
from lol_core.collections.remote_files import in_words
from lol_core.collections.source import Source
from lol_core.insight.overview import Examination
from lol_core.insight.survey import Survey
from ui import work
from ui.jobs import Job, running
from ui.keys import key
from ui.progress import follow
from ui.state import session

READ_UNASKED = 300_000_000
"""Bytes of a collection up to which its weights are read without asking."""
HERE = ("zoo://", "memory://")
"""Addresses of what lies on the computer that the app runs on."""
PATIENCE = 0.3
"""Seconds that a page waits for what is mostly there at once."""
WeightsJob = Job[str, pd.DataFrame | None]


@st.cache_data(max_entries=8, show_spinner=False)
def _size(fingerprint: str, _source: Source) -> int:
    return size(_source)


def size_of(source: Source) -> int:
    """Bytes of all its LoRAs."""
    return _size(source.fingerprint, source)


def examined(source: Source, surveys: Mapping[str, Survey]) -> Examination | None:
    """What the look at every header gave, which is taken beside the page; None until it has been. While weights are
    being read it is the one before.
    """
    state, place = session(), (source.fingerprint, len(surveys))
    n_read, known = state.examined.get(source.fingerprint, (-1, None))
    if len(source) and n_read != len(surveys) and not (known is not None and running(state.survey)):
        job = state.examining
        if job is None or job.subject[0] != source.fingerprint or (not job.running and job.subject != place):
            state.examining = job = work.examine(source, surveys)
            job.wait(PATIENCE)
        if job.result is not None:
            state.examined[source.fingerprint] = job.subject[1], job.result
            return job.result
    return known


def weights_job(source: Source, n_read: int) -> tuple[WeightsJob | None, pd.DataFrame | None]:
    """The job that reads this collection's weights, None where it has not begun; and the LoRAs that are the same
    function, None until all are compared.
    """
    state = session()
    job = state.survey if state.survey is not None and state.survey.subject == source.fingerprint else None
    small = size_of(source) <= READ_UNASKED and not _elsewhere(source)
    if job is None and len(source) and source.fingerprint not in state.same and (small or n_read == len(source)):
        state.survey = job = work.read_weights(source, n_read)
        job.wait(PATIENCE)  # where all was read before, the answer is there at once
    if job is not None and job.result is not None:
        state.same[source.fingerprint] = job.result
    return job, state.same.get(source.fingerprint)


def _elsewhere(source: Source) -> bool:
    """Whether its weights are to be downloaded, for which one is asked whatever their size."""
    return "://" in source.address and not source.address.startswith(HERE)


def survey_line(source: Source, job: WeightsJob | None, n_read: int, examination: Examination | None) -> None:
    """The progress of reading the weights, or a button that begins or goes on. examination: what the page shows; the
    page runs again where that, or what it shows of copies, was overtaken while it was being made.
    """
    state, look = session(), session().examining
    compared = job is not None and job.result is not None and source.fingerprint not in state.same
    found = look.result if look is not None and look.subject == (source.fingerprint, n_read) else None
    if compared or (found is not None and found is not examination and not running(state.survey)):
        st.rerun()
    if job is not None:
        follow(job, "stop_survey")
    elif n_read < len(source):
        st.caption(
            f"The weights of {len(source) - n_read:,} LoRAs have not been read: norms, health and duplicates need them."
            f" Headers are enough for the rest. All {len(source):,} together have {in_words(size_of(source))}."
        )
    if look is not None and look.subject[0] == source.fingerprint and (look.running or look.error):
        follow(look, "stop_examination")
    waiting = n_read < len(source) if job is None else job.stopping and not job.running
    label = "Read the weights" if job is None else "Read the rest of the weights"
    if waiting and st.button(label, icon=":material/search_insights:", key=key("read_weights")):
        state.survey = work.read_weights(source, n_read)
        st.rerun()
