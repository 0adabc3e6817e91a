"""The collection as a table and as a gallery: what every file is, which are the same function, which are not well, and
what was refused and why.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.errors import ZooError
from lol_core.insight.duplicates import SAME
from lol_core.insight.overview import diagnoses, matching, overview, searchable
from lol_core.insight.survey import Survey
from ui.frame import counted, frame, need
from ui.keys import key
from ui.previews import gallery, link_to_lora
from ui.selection import computed, select, select_button, visible
from ui.state import surveys_of
from ui.survey import survey_line, weights_job
from ui.tables import download, filters, show, wrapped

UNFILTERED = ["name", "path", "health", "‖ΔW‖ by module", "dialect", "ranks", "suggested base"]
FORMATS = {
    "size (kB)": st.column_config.NumberColumn(format="%.1f"),
    "parameters": st.column_config.NumberColumn(format="localized"),
    "‖ΔW‖": st.column_config.NumberColumn(format="%.3g", help="Over all modules (Frobenius)."),
    "‖ΔW‖ by module": st.column_config.BarChartColumn(y_min=0, help="In the order of the blocks."),
    "rank used": st.column_config.NumberColumn(format="percent", help="Effective rank over rank, mean of the modules."),
}
source = frame("Zoo")
if source.labels_path:
    st.caption(f"Labels from {source.labels_path}, joined by its column {source.join_column!r}.")
if source.unjoined_labels:
    title = f"{len(source.unjoined_labels)} rows of the labels table belong to no readable file"
    with st.expander(title, icon=":material/link_off:", key=key("unjoined")):
        show(pd.DataFrame({source.join_column or "name": source.unjoined_labels}), "unjoined_names")
if source.labels.shape[1] and (unlabelled := int(source.labels.isna().all(axis=1).sum())):
    st.caption(f"Without a row in the labels table: {counted(unlabelled, 'LoRA')}.")


@st.cache_resource(max_entries=4, show_spinner=False)
def texts_of(fingerprint: str, _source: Source) -> list[str]:
    return searchable(_source)


@st.cache_resource(max_entries=4, show_spinner=False)
def tables_of(
    fingerprint: str, labels: str, n_read: int, _source: Source, _surveys: dict[str, Survey]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The collection's table, and what is wrong with its LoRAs. Shared: not to be changed."""
    return overview(_source, _surveys), diagnoses(_source, _surveys)


surveys = surveys_of(source)
table, marks = tables_of(source.fingerprint, source.labels_digest, len(surveys), source, surveys)
job, same = weights_job(source, len(surveys))
n_groups = "…" if same is None else f"{same['group'].nunique():,}"
titles = [f"LoRAs ({len(source):,})", f"Unwell ({marks['path'].nunique():,})", f"Same function ({n_groups})"]
loaded, unwell, repeated, refused = st.tabs([*titles, f"Refused ({len(source.refused):,})"])
with unwell:
    if len(marks):
        wrapped(marks, "unwell")
    elif len(source):
        st.success(f"Nothing is wrong with the {len(surveys):,} LoRAs whose weights have been read.")
with refused:
    if source.refused:
        rows = [{"path": e.path, "reason": e.reason, "bytes": e.size} for e in source.refused]
        wrapped(pd.DataFrame(rows), "refused")
    else:
        st.success("Every candidate file was read.")
with repeated:
    if same is None and len(source):
        help_text = "Known when all weights have been read and compared: the tab LoRAs says how far that is."
        st.info(help_text, icon=":material/arrow_back:")
    elif same is not None and len(same):
        st.caption(
            f"LoRAs of one group have the same ΔW within {SAME:.0%}, whatever their files, factors, number types or"
            " padded ranks."
        )
        copies = np.where(same["identical"], "same bytes", "other file, same ΔW")
        groups = same.assign(name=same["lora"].map(source.names), copy=copies)[["group", "name", "copy", "lora"]]
        show(groups, "groups", column_config={"lora": "path"})
        select_button(source, list(same["lora"]), "Select these", "select_same")
        download(groups, "same-function")
    elif len(source):
        st.success(f"No two of the {len(source):,} LoRAs are the same function.")


def passing() -> pd.DataFrame:
    """The rows that pass the search and the filters."""
    search, dialect, base, rank = st.columns([3, 2, 3, 2])
    text = search.text_input(
        "Search",
        key=key("q"),
        bind="query-params",
        placeholder="name, path, trigger word, metadata; or /regex/",
        live="100ms",
    )
    keep = table.index.isin(visible(source))
    for column, place, label in (("dialect", dialect, "Dialect"), ("suggested base", base, "Base model")):
        values, name = sorted(table[column].dropna().unique()), label.split()[0].lower()
        if picked := place.multiselect(label, values, key=key(name), bind="query-params"):
            keep &= table[column].isin(picked).to_numpy()
    ranks = sorted({r for e in source.entries for r in e.ranks})
    if picked_ranks := set(rank.multiselect("Rank", ranks, key=key("rank"), bind="query-params")):
        keep &= np.array([bool(picked_ranks & set(e.ranks)) for e in source.entries])
    try:
        keep &= matching(texts_of(source.fingerprint, source), text) if text else True
    except ZooError as error:
        st.error(str(error))
    pool = table.drop(columns=UNFILTERED, errors="ignore")
    offered = {name: column.reindex(pool.index) for name, column in computed(source).items() if name not in pool}
    return table[keep & filters(pool.assign(**offered))]


@st.fragment
def listing() -> None:
    """Search, filters, and the LoRAs that pass them as a table or a gallery; alone redrawn at each keystroke."""
    shown, view, ailing = passing(), "Table", set(marks["path"])
    line = st.container(horizontal=True, vertical_alignment="center")
    if any(source.preview(id) for id in source.ids[:20]):
        view = line.segmented_control(
            "View",
            ["Table", "Gallery"],
            default=view,
            key=key("view"),
            required=True,
            bind="query-params",
            label_visibility="collapsed",
        )
    help_text = "LoRAs with something wrong or odd about them."
    if ailing and line.toggle(f"Only unwell ({len(ailing):,})", key=key("unwell"), bind="query-params", help=help_text):
        shown = shown[shown.index.isin(ailing)]
    line.caption(f"{len(shown):,} of {len(table):,} LoRAs. Tick rows to look at one or to select several.")
    need(len(shown), "No LoRA matches. Clear the search or a filter.")
    if view == "Gallery":
        gallery(source, list(shown.index))
        return
    event = st.dataframe(
        shown,
        hide_index=True,
        height=560,
        on_select="rerun",
        selection_mode="multi-row",
        key=key("zoo_table"),
        column_config=FORMATS,
    )
    ticked, chosen = list(shown.index[event.selection.rows]), list[str]()
    left, right = st.columns([1, 3])
    with left:
        download(shown, source.name)
    with right, st.container(horizontal=True):
        if st.button(f"Select all {len(shown):,} shown", icon=":material/select_all:", key=key("select_shown")):
            chosen = list(shown.index)
        if ticked:
            if st.button(f"Select the {len(ticked):,} ticked", icon=":material/check_box:", key=key("select_ticked")):
                chosen = ticked
            link_to_lora(source, ticked[0], f"Look at {source.names[ticked[0]]}")
    if chosen:
        select(source, chosen)
        st.rerun()  # the whole page: the selection stands in the sidebar


with loaded:
    help_text = "The other tab says why; or open another collection in the sidebar."
    need(len(source), f"No LoRA could be read in this collection. {help_text}")
    survey_line(source, job, len(surveys))
    listing()
