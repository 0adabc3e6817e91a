"""The frame of every page: title, navigation, and the collection that is open."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.errors import LoLError
from lol_core.zoo import Zoo
from ui.state import MAX_OPEN_ZOOS, SAMPLE_ZOO, session

PAGES = (
    ("app.py", "Home", ":material/home:"),
    ("pages/Zoo.py", "Zoo", ":material/table_rows:"),
    ("pages/LoRA.py", "LoRA", ":material/layers:"),
    ("pages/Train.py", "Train", ":material/model_training:"),
    ("pages/Predictions.py", "Predictions", ":material/insights:"),
    ("pages/Invariance.py", "Invariance", ":material/rotate_right:"),
)


def frame(title: str) -> Zoo:
    """Draw the frame and return the open collection. Ends the page, with what to do, when there is none to show."""
    st.set_page_config(page_title=f"{title} · LoL Explorer", page_icon=":material/hub:", layout="wide")
    with st.sidebar:
        st.markdown("### LoL Explorer\nLearning on LoRAs")
        for path, label, icon in PAGES:
            st.page_link(path, label=label, icon=icon, width="stretch")
        st.divider()
        folder = st.text_input(
            "Collection", value=str(SAMPLE_ZOO), key="collection", bind="query-params", help="Any folder of LoRAs on this computer. It is only ever read."
        )
        labels = st.text_input(
            "Labels file",
            key="labels",
            bind="query-params",
            placeholder="labels.csv in the folder, if any",
            help="A CSV or Parquet table: one column names the files, the others are labels.",
        )
        rescan = st.button("Look for changes", icon=":material/refresh:", width="stretch")
    st.title(title)
    try:
        zoo = open_zoo(folder or str(SAMPLE_ZOO), labels or "", rescan)
    except LoLError as error:
        st.error(str(error), icon=":material/folder_off:")
        st.info("Type the path of a folder of LoRAs under **Collection** in the sidebar, or empty the field for the sample zoo.")
        st.stop()
    with st.sidebar:
        st.caption(f"{len(zoo):,} LoRAs open, {len(zoo.refused):,} files refused, {zoo.labels.shape[1]} label columns.")
        if session().job is not None and session().job.running:  # type: ignore[union-attr]
            st.page_link("pages/Train.py", label="Training is running", icon=":material/hourglass_top:")
    return zoo


def open_zoo(folder: str, labels: str, rescan: bool = False) -> Zoo:
    """The collection, scanned with a progress bar when this session has not opened it yet. Raises ZooError."""
    zoos, key = session().zoos, (folder, labels)
    if not rescan and key in zoos and zoos[key].folder.is_dir():
        return zoos[key]
    zoos.pop(key, None)
    place = st.empty()

    def report(done: int, total: int) -> None:
        if done % 100 == 0:
            place.progress(done / total, f"Reading headers: {done:,} of {total:,} files")

    zoo = Zoo.open(Path(folder), labels or None, progress=report)
    place.empty()
    while len(zoos) >= MAX_OPEN_ZOOS:
        zoos.pop(next(iter(zoos)))
    zoos[key] = zoo
    return zoo


def need(condition: object, message: str) -> None:
    """End the page with what to do next when a condition is not met."""
    if not condition:
        st.info(message, icon=":material/arrow_forward:")
        st.stop()
