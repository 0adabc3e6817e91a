"""The collection as a table: what every file is, and what was refused and why."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from ui.frame import frame, need, page_link

MAX_WRAPPED = 100

zoo = frame("Zoo")
if zoo.labels_path:
    st.caption(f"Labels from {zoo.labels_path}, joined by its column {zoo.join_column!r}.")
if zoo.unjoined_labels:
    with st.expander(f"{len(zoo.unjoined_labels)} rows of the labels table belong to no readable file", icon=":material/link_off:", key="unjoined"):
        st.dataframe(pd.DataFrame({zoo.join_column or "name": zoo.unjoined_labels}), hide_index=True)
if len(zoo) and zoo.labels.shape[1] and (unlabelled := int(zoo.labels.isna().all(axis=1).sum())):
    st.caption(f"{unlabelled} LoRAs have no row in the labels table.")

table = zoo.table() if len(zoo) else pd.DataFrame()
loaded, refused = st.tabs([f"LoRAs ({len(zoo):,})", f"Refused ({len(zoo.refused):,})"])
with refused:
    if zoo.refused:
        reasons = pd.DataFrame([{"path": e.path, "reason": e.reason, "bytes": e.size} for e in zoo.refused])
        if len(reasons) <= MAX_WRAPPED:  # a plain table wraps its text, so that the advice at a reason's end is seen
            st.table(reasons.set_index("path"))
        else:
            st.dataframe(reasons, hide_index=True, column_config={"reason": st.column_config.TextColumn(width=900)})
        st.download_button("Download as CSV", reasons.to_csv(index=False), "refused.csv", "text/csv", icon=":material/download:")
    else:
        st.success("Every candidate file was read.")
with loaded:
    need(len(zoo), "No LoRA could be read in this folder. The other tab says why; or open another folder in the sidebar.")
    search, dialect, base, rank = st.columns([3, 2, 3, 2])
    text = search.text_input("Search", key="q", bind="query-params", placeholder="part of a name or path", live=True)
    dialects = dialect.multiselect("Dialect", sorted(table["dialect"].dropna().unique()), key="dialect", bind="query-params")
    bases = base.multiselect("Base model", sorted(table["suggested base"].dropna().unique()), key="base", bind="query-params", help="As the shapes suggest.")
    ranks = rank.multiselect("Rank", sorted({r for e in zoo.entries for r in e.ranks}), key="rank", bind="query-params")
    keep = pd.Series(True, index=table.index)
    if text:
        haystack = table["path"] + " " + table["base model"].fillna("")
        keep &= haystack.str.contains(text, case=False, regex=False)
    if dialects:
        keep &= table["dialect"].isin(dialects)
    if bases:
        keep &= table["suggested base"].isin(bases)
    if ranks:
        keep &= [bool(set(e.ranks) & set(ranks)) for e in zoo.entries]
    shown = table[keep]
    st.caption(f"{len(shown):,} of {len(table):,} LoRAs. Select a row to look at that LoRA.")
    need(len(shown), "No LoRA matches. Clear the search or a filter.")
    event = st.dataframe(
        shown,
        hide_index=True,
        height=560,
        on_select="rerun",
        selection_mode="single-row",
        key="zoo_table",
        column_config={"size (kB)": st.column_config.NumberColumn(format="%.1f"), "parameters": st.column_config.NumberColumn(format="localized")},
    )
    actions = st.columns([1, 3])
    rows = event.selection.rows
    if rows:
        chosen = shown.index[rows[0]]
        with actions[1]:
            page_link("pages/LoRA.py", f"Look at {zoo.names[chosen]}", ":material/layers:", lora=zoo.names[chosen])
    actions[0].download_button("Download as CSV", shown.to_csv(index=False), f"{zoo.name}.csv", "text/csv", icon=":material/download:")
