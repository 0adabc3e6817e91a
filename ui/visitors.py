"""The visitors of a served app: when one has left, its work stops and what it made is deleted.

Streamlit tells nobody of the end of a session, and drops it when it happens to collect garbage; so a thread looks.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ui.jobs import Job

EVERY = 10.0
"""Seconds between two looks."""


class Visitor:
    """folder: of what the visitor makes; id: of the session, as Streamlit has it; absent: since when it is not
    connected, in seconds of a clock that never goes back.
    """

    def __init__(self, folder: Path, id: str):
        self.folder, self.id = folder, id
        self.absent: float | None = None


_VISITORS: WeakKeyDictionary[object, Visitor] = WeakKeyDictionary()
_LOCK = threading.Lock()


def watch(folder: Path, state: object) -> None:
    """From now on delete a folder, and stop the jobs among the attributes of a session's state, when its visitor has
    left.
    """
    context = get_script_run_ctx()
    with _LOCK:
        _VISITORS[state] = Visitor(folder, "" if context is None else context.session_id)
    _look()


def end(connected: Callable[[str], bool], now: float, patience: float) -> None:
    """End the visits of all who are not connected for longer than `patience` seconds. connected: whether a session is.

    What a job writes before it has stopped is deleted the next time.
    """
    with _LOCK:
        watched = list(_VISITORS.items())
    for state, visitor in watched:
        if connected(visitor.id):
            visitor.absent = None
        elif visitor.absent is None:
            visitor.absent = now
        elif now - visitor.absent > patience:
            for kept in vars(state).values():
                for job in kept.values() if isinstance(kept, dict) else (kept,):
                    if isinstance(job, Job):
                        job.stop()
            shutil.rmtree(visitor.folder, ignore_errors=True)


@cache
def _look() -> None:
    """Start looking, once, where there is a server. Who does not come back within the time that Streamlit keeps a lost
    connection for cannot take it up any more.
    """

    def look() -> None:
        while True:
            time.sleep(EVERY)
            end(server.is_active_session, time.monotonic(), patience)

    if runtime.exists():
        server = runtime.get_instance()
        patience = float(st.get_option("server.disconnectedSessionTTL"))
        threading.Thread(target=look, daemon=True).start()
