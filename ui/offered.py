"""Columns that the files of a collection offer as labels, and a table of those that are taken."""

from __future__ import annotations

import hashlib
import re

import pandas as pd
import streamlit as st

from lol_core.collections.durable import replace_file
from lol_core.collections.labels import as_table
from lol_core.collections.offered import described, take
from lol_core.collections.source import Source
from ui import work
from ui.access import access
from ui.frame import open_collection
from ui.keys import key
from ui.progress import follow
from ui.state import kept, session
from ui.tables import show


def offers(source: Source) -> bool:
    """Whether labels of its files may be taken. Not by visitors of a server, who name no files there, nor of the sample
    zoos, which have a table of all.
    """
    return not access().served and len(source) > 1 and source.address not in access().zoos.values()


def offer(source: Source) -> None:
    """What cards, headers, training states and names say of the LoRAs, to take as labels."""
    if not offers(source):
        return
    with st.expander("Labels that the files offer", icon=":material/new_label:", key=key("offered")):
        st.caption(
            "Cards, headers, training states and names say much that may be wrong. Nothing of it is used unless you"
            " take it. In a collection elsewhere, its small files are read for this."
        )
        job = session().offering
        if job is not None and job.subject != source.fingerprint:
            job = None
        if job is not None and job.running:
            follow(job, "stop_offering")
        elif job is not None and job.result is not None:
            if job.result.empty:
                st.info("They say nothing that tells these LoRAs apart.")
            else:
                _choice(source, job.result)
        else:
            if job is not None and job.error:
                st.error(job.error)
            if st.button("Look for labels", icon=":material/search:", key=key("look_for_labels")):
                session().offering = work.look_for_labels(source)
                st.rerun()


def _choice(source: Source, table: pd.DataFrame) -> None:
    show(pd.DataFrame(described(table)), "offered_columns")
    new = [name for name in table.columns if name not in source.labels.columns]
    taken = st.multiselect("Take as labels", new, key=key("taken"))
    st.button("Use them", type="primary", disabled=not taken, on_click=_use, args=(source, taken, table))


def _use(source: Source, taken: list[str], table: pd.DataFrame) -> None:
    """Write the labels of the collection and those that are taken into a table of this program's, and open it so."""
    digest = hashlib.sha256(source.address.encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "-", source.name)
    path = kept() / "labels" / f"{name}-{digest}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = as_table(take(source, taken, table))
    replace_file(path, lambda new: labels.to_csv(new, index=False))
    session().opened.pop((source.address, str(path)), None)
    open_collection(source.address, str(path))
