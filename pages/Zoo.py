"""The collection as a table and as a gallery: what every file is, which are the same function, which are not well, and
what was refused and why.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from lol_core.collections.names import counted
from lol_core.insight.duplicates import SAME
from lol_core.insight.overview import overview
from ui.columns import columns_of
from ui.frame import frame, need
from ui.keys import key
from ui.listing import PAGE, ordered, passing, table_of
from ui.offered import offer
from ui.plain import plain
from ui.previews import gallery, has_gallery, link_to_lora
from ui.selection import select, select_button
from ui.state import surveys_of
from ui.survey import examined, survey_line, weights_job
from ui.tables import download, paged, show, wrapped

FORMATS = {
    "size (kB)": st.column_config.NumberColumn(format="%.1f"),
    "parameters": st.column_config.NumberColumn(format="localized"),
    "‖ΔW‖": st.column_config.NumberColumn(format="%.3g", help="Over all modules (Frobenius)."),
    "‖ΔW‖ by module": st.column_config.BarChartColumn(y_min=0, help="In the order of the blocks."),
    "rank used": st.column_config.NumberColumn(format="percent", help="Effective rank over rank, mean of the modules."),
}
source = frame("Zoo")
if source.labels_path:
    st.caption(plain(f"Labels from {source.labels_path}, joined by its column {source.join_column!r}."))
if source.unjoined_labels:
    title = f"{len(source.unjoined_labels)} rows of the labels table belong to no readable file"
    with st.expander(title, icon=":material/link_off:", key=key("unjoined")):
        show(pd.DataFrame({source.join_column or "name": source.unjoined_labels}), "unjoined_names")
if source.labels.shape[1] and (unlabelled := int(source.labels.isna().all(axis=1).sum())):
    st.caption(f"Without a row in the labels table: {counted(unlabelled, 'LoRA')}.")
offer(source)


job, same = weights_job(source, len(surveys_of(source)))
surveys = surveys_of(source)  # again: few weights were read while the page waited for the job
examination = examined(source, surveys)
marks = pd.DataFrame(columns=["path"]) if examination is None else examination.diagnoses
unknown = "…" if len(source) else "0"
n_groups = unknown if same is None else f"{same['group'].nunique():,}"
n_unwell = unknown if examination is None else f"{marks['path'].nunique():,}"
titles = [f"LoRAs ({len(source):,})", f"Unwell ({n_unwell})", f"Same function ({n_groups})"]
titles += [f"Refused ({len(source.refused):,})"]
loaded, unwell, repeated, refused = st.tabs(titles)
with unwell:
    if len(marks):
        wrapped(marks, "unwell")
    elif examination is None and len(source):
        st.info("Known when every header has been looked at.", icon=":material/arrow_back:")
    elif len(source) and not surveys:
        st.info("The headers show nothing wrong. The weights have not been read yet: the tab LoRAs does that.")
    elif len(source):
        st.success(f"Nothing is wrong with the {counted(len(surveys), 'LoRA')} whose weights have been read.")
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
        st.success(f"No two of the {counted(len(source), 'LoRA')} are the same function.")


@st.fragment
def listing() -> None:
    """Search, filters, and the LoRAs that pass them as a table or a gallery; alone redrawn at each keystroke."""
    columns = columns_of(source, surveys, examination)
    shown, view, ailing = passing(source, columns), "Table", set(marks["path"])
    line = st.container(horizontal=True, vertical_alignment="center")
    if has_gallery(source):
        view = line.segmented_control(
            "View",
            ["Table", "Gallery"],
            default=view,
            key=key("view"),
            required=True,
            bind="query-params",
            label_visibility="collapsed",
        )
    help_text = "LoRAs with something wrong with them."
    if ailing and line.toggle(f"Only unwell ({len(ailing):,})", key=key("unwell"), bind="query-params", help=help_text):
        shown = [id for id in shown if id in ailing]
    what = "Tick rows to look at one or to select several." if view == "Table" else "Click a name to look at one."
    line.caption(f"{len(shown):,} of {len(source):,} LoRAs. {what}")
    need(len(shown), "No LoRA matches. Clear the search or a filter.")
    shown = ordered(shown, columns, line)
    ticked, chosen = list[str](), list[str]()
    if view == "Gallery":
        gallery(source, shown)
    else:
        page = shown[paged(len(shown), PAGE, "page")]
        event = st.dataframe(
            table_of(source, page, surveys, examination),
            hide_index=True,
            height=560,
            on_select="rerun",
            selection_mode="multi-row",
            key=key("zoo_table"),
            column_config=FORMATS,
        )
        ticked = [page[row] for row in event.selection.rows if row < len(page)]
    with st.container(horizontal=True):
        runs = None if examination is None else examination.runs
        text = f"Download all {len(shown):,} as CSV"  # the table's toolbar has those of this page
        download(lambda: overview(source, surveys, shown, runs), source.name, label=text)
        if st.button(f"Select all {len(shown):,} shown", icon=":material/select_all:", key=key("select_shown")):
            chosen = shown
        if ticked:
            if st.button(f"Select the {len(ticked):,} ticked", icon=":material/check_box:", key=key("select_ticked")):
                chosen = ticked
            link_to_lora(source, ticked[0], f"Look at {source.names[ticked[0]]}")
    if chosen:
        select(source, chosen)
        st.rerun()  # the whole page: the selection stands in the sidebar


with loaded:
    why = f"The tab **{titles[-1]}** says why; or open" if source.refused else "Open"
    need(len(source), f"No LoRA could be read in this collection. {why} another collection in the sidebar.")
    survey_line(source, job, len(surveys), examination)
    listing()
