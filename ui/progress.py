"""The progress of a job on the page that started it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ui.jobs import Job
from ui.keys import key

Watched = Job[Any, Any]


def show_progress(job: Watched, *, left: bool = True) -> None:
    """How far a job is, what it does, and the time left, unless its messages tell that better."""
    seconds = job.seconds_left if left else None
    text = f" · about {seconds:.0f} s left in all" if seconds is not None else ""
    st.progress(min(job.progress.fraction, 1.0), "Stopping …" if job.stopping else job.progress.message + text)


def follow(job: Watched, name: str) -> None:
    """How far a job is, the time left and a stop button, until it ends; then the page runs again. And why it failed, or
    that it was stopped.
    """
    busy = job.running

    @st.fragment(run_every=0.4 if busy else None)
    def watch() -> None:
        if job.running:
            left, right = st.columns([6, 1], vertical_alignment="center")
            with left:
                show_progress(job)
            if right.button("Stop", icon=":material/stop:", key=key(name)):
                job.stop()
        elif busy:
            st.rerun(scope="app")
        elif job.error:
            st.error(job.error)
        elif job.stopping and job.result is None:
            st.caption("Stopped.")

    watch()
