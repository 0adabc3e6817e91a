"""The collection as a table and as a gallery: what every file is, which are the same function, which are not well, and
what was refused and why.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.collections.zoo import Zoo, training_runs
from lol_core.insight.survey import SAME, Survey, health
from ui.frame import frame, need, page_link
from ui.jobs import SurveyJob
from ui.keys import key
from ui.progress import follow
from ui.selection import computed, select, visible
from ui.state import preview_of, session, surveys_of

MAX_WRAPPED = 100
GALLERY_PAGE = 48
READ_UNASKED = 300_000_000  # bytes of a collection up to which its weights are read without asking

zoo = frame("Zoo")
state = session()
if zoo.labels_path:
    st.caption(f"Labels from {zoo.labels_path}, joined by its column {zoo.join_column!r}.")
if zoo.unjoined_labels:
    with st.expander(
        f"{len(zoo.unjoined_labels)} rows of the labels table belong to no readable file",
        icon=":material/link_off:",
        key=key("unjoined"),
    ):
        st.dataframe(pd.DataFrame({zoo.join_column or "name": zoo.unjoined_labels}), hide_index=True)
if len(zoo) and zoo.labels.shape[1] and (unlabelled := int(zoo.labels.isna().all(axis=1).sum())):
    st.caption(f"{unlabelled} LoRAs have no row in the labels table.")


@st.cache_resource(max_entries=4, show_spinner=False)
def searchable(fingerprint: str, _zoo: Zoo) -> list[str]:
    """What a search looks through: path, base model and everything the header says."""
    return [
        " ".join([e.path, e.base_model or "", e.suggested_base or "", json.dumps(e.metadata or {}, ensure_ascii=False)])
        for e in _zoo.entries
    ]


@st.cache_resource(max_entries=4, show_spinner=False)
def diagnosed(fingerprint: str, n_read: int, _zoo: Zoo, _surveys: dict[str, Survey]) -> pd.DataFrame:
    """What is wrong or odd about each LoRA: path, what, reason."""
    rows = [
        {"path": entry.path, "what": mark.ailment, "reason": mark.reason}
        for entry in _zoo.entries
        for mark in health(entry, _surveys.get(entry.path))
    ]
    return pd.DataFrame(rows, columns=["path", "what", "reason"])


@st.cache_resource(max_entries=4, show_spinner=False)
def whole_table(fingerprint: str, labels: str, n_read: int, _zoo: Zoo, _surveys: dict[str, Survey]) -> pd.DataFrame:
    """The collection's table, and columns from the weights of the LoRAs that have been read; health also from the
    headers alone. Shared: not to be changed.
    """
    rows = {}
    for entry in _zoo.entries:
        found = _surveys.get(entry.path)
        read = found is not None and found.problem is None
        ranks = np.array([module.rank for module in entry.headers])
        rows[entry.path] = {
            "‖ΔW‖": found.norm if read and found else None,
            "‖ΔW‖ by module": found.norms.tolist() if read and found else None,
            "rank used": float((found.effective_ranks / ranks).mean()) if read and found else None,
            "health": ", ".join(mark.ailment for mark in health(entry, found)) or None,
        }
    runs = training_runs(_zoo.names)["run"].rename("training run")
    headers = _zoo.table().join(runs) if len(runs) else _zoo.table()
    return headers.join(
        pd.DataFrame.from_dict(rows, orient="index", columns=["‖ΔW‖", "‖ΔW‖ by module", "rank used", "health"])
    )


def reading(zoo: Zoo, read: int) -> SurveyJob | None:
    """The job that reads this collection's weights and compares them: begun unasked where that is cheap, None where it
    has not begun or has all been done.
    """
    job = state.survey if state.survey is not None and state.survey.zoo is zoo else None
    small = sum(entry.size for entry in zoo.entries) <= READ_UNASKED
    if job is None and len(zoo) and zoo.fingerprint not in state.same and (small or read == len(zoo)):
        state.survey = job = SurveyJob(zoo)
        job.start()
        job.wait(0.3)  # where all was read before, the answer is there at once
    if job is not None and job.result is not None:
        state.same[zoo.fingerprint] = job.result
    return job


def survey_line(job: SurveyJob | None, read: int) -> None:
    """Reading the weights: its progress, or a button."""
    if job is None:
        if read < len(zoo):
            if st.button("Read the weights", icon=":material/search_insights:"):
                state.survey = SurveyJob(zoo)
                state.survey.start()
                st.rerun()
            st.caption(
                f"The weights of {len(zoo) - read:,} LoRAs have not been read: norms, health and duplicates need them."
                " Headers are enough for the rest."
            )
        return
    follow(job, "stop_survey")
    if job.error:
        st.error(job.error)
    elif (
        job.stopping
        and not job.running
        and st.button("Read the rest of the weights", icon=":material/search_insights:")
    ):
        state.survey = SurveyJob(zoo)
        state.survey.start()
        st.rerun()


def more_filters(table: pd.DataFrame) -> np.ndarray:
    """Which rows pass the filters by size, norm, label, or what models predicted on other pages. (rows,)."""
    pool = table.drop(
        columns=["name", "path", "health", "‖ΔW‖ by module", "dialect", "ranks", "suggested base"], errors="ignore"
    )
    for columns in computed(zoo).values():
        pool = pool.join(columns.drop(columns=[name for name in columns.columns if name in pool.columns]))
    by = st.multiselect(
        "Filter by",
        list(pool.columns),
        key=key("by"),
        bind="query-params",
        placeholder="a label, the size, the norm, a prediction",
    )
    keep = np.ones(len(pool), bool)
    for column, place in zip(by, st.columns(max(1, min(len(by), 4))) * len(by), strict=False):
        values = pool[column]
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > 6:
            low, high = float(values.min()), float(values.max())
            chosen = place.slider(column, low, high, (low, high), key=key(f"range {column}"), format="%.4g")
            keep &= values.between(*chosen).to_numpy() if chosen != (low, high) else True
        else:
            said = values.astype(str).where(values.notna(), "unknown")
            picked = place.multiselect(column, sorted(said.unique()), key=key(f"values {column}"))
            keep &= said.isin(picked).to_numpy() if picked else True
    return keep


def wrapped(table: pd.DataFrame, name: str) -> None:
    """A table whose long texts are shown in full, a page at a time, and all of it as CSV."""
    pages = -(-len(table) // MAX_WRAPPED)
    page = st.number_input(f"Page, of {pages}", 1, pages, 1, key=key(f"{name}_page")) if pages > 1 else 1
    st.table(table.iloc[(page - 1) * MAX_WRAPPED : page * MAX_WRAPPED].set_index("path"))
    st.download_button(
        "Download as CSV",
        lambda: table.to_csv(index=False),
        f"{name}.csv",
        "text/csv",
        icon=":material/download:",
        key=key(f"{name}_csv"),
    )


def gallery(ids: list[str]) -> None:
    """Previews, a page at a time, each linked to its LoRA."""
    pages = -(-len(ids) // GALLERY_PAGE)
    page = st.number_input(f"Page, of {pages}", 1, pages, 1, key=key("gallery_page")) if pages > 1 else 1
    with st.container(horizontal=True):
        for id in ids[(page - 1) * GALLERY_PAGE : page * GALLERY_PAGE]:
            with st.container(width=132, border=True):
                path = preview_of(zoo, id)
                if path is None:
                    st.caption("No preview")
                else:
                    strip = Image.open(path)
                    st.image(
                        strip.crop((0, 0, strip.height, strip.height)).resize((128, 128), Image.Resampling.BICUBIC),
                        width=112,
                        alt=f"Preview of {id}",
                    )
                page_link("pages/LoRA.py", zoo.names[id].rsplit("/", 1)[-1], ":material/layers:", lora=id)


known = surveys_of(zoo)
n_read = len(known)
table = whole_table(zoo.fingerprint, zoo.labels_digest, n_read, zoo, known) if len(zoo) else pd.DataFrame()
job = reading(zoo, n_read)
same = state.same.get(zoo.fingerprint)
n_groups = "…" if same is None else f"{same['group'].nunique():,}"
diagnoses = diagnosed(zoo.fingerprint, n_read, zoo, known)
loaded, unwell, repeated, refused = st.tabs(
    [
        f"LoRAs ({len(zoo):,})",
        f"Unwell ({diagnoses['path'].nunique():,})",
        f"Same function ({n_groups})",
        f"Refused ({len(zoo.refused):,})",
    ]
)
with unwell:
    if len(diagnoses):
        wrapped(diagnoses, "unwell")
    elif len(zoo):
        st.success(f"Nothing is wrong with the {n_read:,} LoRAs whose weights have been read.")
with refused:
    if zoo.refused:
        wrapped(pd.DataFrame([{"path": e.path, "reason": e.reason, "bytes": e.size} for e in zoo.refused]), "refused")
    else:
        st.success("Every candidate file was read.")
with repeated:
    if same is None and len(zoo):
        st.info(
            "Known when all weights have been read and compared: the tab LoRAs says how far that is.",
            icon=":material/arrow_back:",
        )
    elif same is not None and len(same):
        st.caption(
            f"LoRAs of one group have the same ΔW within {SAME:.0%}, whatever their files, factors, number types or"
            " padded ranks."
        )
        shown_groups = same.assign(
            name=same["lora"].map(zoo.names), copy=np.where(same["identical"], "same bytes", "other file, same ΔW")
        )
        st.dataframe(shown_groups[["group", "name", "copy", "lora"]], hide_index=True, column_config={"lora": "path"})
        st.button(
            "Select these",
            icon=":material/select_all:",
            on_click=select,
            args=(zoo, list(same["lora"])),
            key=key("select_same"),
        )
        st.download_button(
            "Download as CSV",
            shown_groups.to_csv(index=False),
            "same-function.csv",
            "text/csv",
            icon=":material/download:",
            key=key("same_csv"),
        )
    elif len(zoo):
        st.success(f"No two of the {len(zoo):,} LoRAs are the same function.")


@st.fragment
def listing() -> None:
    """Search, filters, and the LoRAs that pass them as a table or a gallery; alone redrawn at each keystroke."""
    search, dialect, base, rank = st.columns([3, 2, 3, 2])
    text = search.text_input(
        "Search",
        key=key("q"),
        bind="query-params",
        placeholder="name, path, trigger word, metadata; or /regex/",
        live="100ms",
    )
    dialects = dialect.multiselect(
        "Dialect", sorted(table["dialect"].dropna().unique()), key=key("dialect"), bind="query-params"
    )
    bases = base.multiselect(
        "Base model",
        sorted(table["suggested base"].dropna().unique()),
        key=key("base"),
        bind="query-params",
        help="As the shapes suggest.",
    )
    ranks = rank.multiselect(
        "Rank", sorted({r for e in zoo.entries for r in e.ranks}), key=key("rank"), bind="query-params"
    )
    among = set(visible(zoo))
    keep = pd.Series([id in among for id in zoo.ids] if len(among) < len(zoo) else True, index=table.index)
    if text:
        inside = re.fullmatch(r"/(.+)/", text)
        try:
            pattern = re.compile(inside[1] if inside else re.escape(text), re.IGNORECASE)
        except re.error as error:
            st.error(f"{text} is no regular expression ({error}). Without the slashes it is searched as it stands.")
        else:
            keep &= np.array([pattern.search(said) is not None for said in searchable(zoo.fingerprint, zoo)])
    if dialects:
        keep &= table["dialect"].isin(dialects)
    if bases:
        keep &= table["suggested base"].isin(bases)
    if ranks:
        keep &= np.array([bool(set(e.ranks) & set(ranks)) for e in zoo.entries])
    keep &= more_filters(table)
    a, b, c = st.columns([2, 2, 4], vertical_alignment="center")
    views = ["Table", "Gallery"] if any(preview_of(zoo, id) for id in zoo.ids[:20]) else ["Table"]
    view = (
        a.segmented_control(
            "View", views, default="Table", key=key("view"), bind="query-params", label_visibility="collapsed"
        )
        if len(views) > 1
        else "Table"
    )
    ailing = int(table["health"].notna().sum())
    if ailing and b.toggle(
        f"Only unwell ({ailing:,})",
        key=key("unwell"),
        bind="query-params",
        help="LoRAs with something wrong or odd about them.",
    ):
        keep &= table["health"].notna()
    shown = table[keep]
    c.caption(f"{len(shown):,} of {len(table):,} LoRAs. Tick rows to look at one or to select several.")
    need(len(shown), "No LoRA matches. Clear the search or a filter.")
    if view == "Gallery":
        gallery(list(shown.index))
        return
    first = [name for name in ("name", "health", "‖ΔW‖", "‖ΔW‖ by module", "rank used") if shown[name].notna().any()]
    event = st.dataframe(
        shown,
        hide_index=True,
        height=560,
        on_select="rerun",
        selection_mode="multi-row",
        key=key("zoo_table"),
        column_order=[
            *first,
            *(name for name in shown.columns if name not in {*first, "health", "‖ΔW‖", "‖ΔW‖ by module", "rank used"}),
        ],
        column_config={
            "size (kB)": st.column_config.NumberColumn(format="%.1f"),
            "parameters": st.column_config.NumberColumn(format="localized"),
            "‖ΔW‖": st.column_config.NumberColumn(format="%.3g", help="Over all modules (Frobenius)."),
            "‖ΔW‖ by module": st.column_config.BarChartColumn(y_min=0, help="In the order of the file."),
            "rank used": st.column_config.NumberColumn(
                format="percent", help="Effective rank over rank, mean of the modules."
            ),
        },
    )
    actions = st.columns([1, 3])
    rows = event.selection.rows
    with actions[1], st.container(horizontal=True):
        taken = (
            list(shown.index)
            if st.button(f"Select all {len(shown):,} shown", icon=":material/select_all:", key=key("select_shown"))
            else []
        )
        if rows:
            chosen = [shown.index[row] for row in rows]
            if st.button(f"Select the {len(chosen):,} ticked", icon=":material/check_box:", key=key("select_ticked")):
                taken = chosen
            page_link("pages/LoRA.py", f"Look at {zoo.names[chosen[0]]}", ":material/layers:", lora=chosen[0])
    actions[0].download_button(
        "Download as CSV", lambda: shown.to_csv(index=False), f"{zoo.name}.csv", "text/csv", icon=":material/download:"
    )
    if taken:
        select(zoo, taken)
        st.rerun()  # the whole page: the selection stands in the sidebar


with loaded:
    need(
        len(zoo), "No LoRA could be read in this folder. The other tab says why; or open another folder in the sidebar."
    )
    survey_line(job, len(known))
    listing()
