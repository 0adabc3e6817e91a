"""Maps of a session: drawn beside the page once, and kept."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.insight.embedding import families
from lol_core.insight.explanation import name_clusters
from lol_core.insight.maps import Map, MapSettings, family_title
from ui import work
from ui.keys import key
from ui.progress import follow
from ui.state import load_or_stop, session

KEPT = 6
"""Maps that a session keeps."""


@st.cache_resource(max_entries=4, show_spinner=False)  # as it is: a copy of 100,000 ids is compared one by one
def families_of(fingerprint: str, _source: Source) -> list[tuple[str, ...]]:
    return families(_source.entries)


@st.cache_data(max_entries=8, show_spinner=False)
def cluster_names(settings: MapSettings, fingerprint: str, _clusters: pd.Series, _source: Source) -> dict[int, str]:
    return name_clusters(_clusters, _source.labels)


def choose_family(source: Source) -> tuple[str, ...]:
    """The LoRAs to place, which adapt the same modules: only these have distances."""
    groups = families_of(source.fingerprint, source)
    if len(groups) == 1:
        return groups[0]
    titles = [family_title(source, group) for group in groups]
    label, text = "LoRAs of the same modules", "Only these have distances."
    place = st.selectbox(label, range(len(groups)), format_func=titles.__getitem__, key=key("family"), help=text)
    return groups[place]


def drawn(source: Source, settings: MapSettings) -> Map:
    """The map, from the session where it has been drawn there. Ends the page with the progress until it is."""
    state = session()
    if settings in state.maps:
        return state.maps[settings]
    if (job := state.mapping) is None or job.subject != settings:
        if job is not None:
            job.stop()
        earlier = [known.picture for other, known in state.maps.items() if settings.continues(other)]
        model = load_or_stop(settings.model.rpartition(" ")[0]) if settings.model else None
        state.mapping = job = work.map_of(source, settings, model, earlier[-1] if earlier else None)
    follow(job, "stop_map")
    if job.result is not None:
        state.maps = dict([*state.maps.items()][1 - KEPT :]) | {settings: job.result}
        st.rerun()
    if not job.running and st.button("Draw the map", type="primary", icon=":material/brush:"):
        state.mapping = None
        st.rerun()
    return st.stop()
