"""LoL Explorer: look at a collection of LoRAs, train models that read their weights, and watch invariance hold."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.checkpoint import Checkpoint
from lol_core.errors import CheckpointError
from ui.frame import frame, page_link, set_url
from ui.state import SAMPLE_SUBJECTS, SAMPLE_ZOO, SAMPLE_ZOOS, checkpoints, load_checkpoint, session

zoo = frame("LoL Explorer")
st.markdown(
    "A LoRA is a fine-tune of a model, stored as pairs of thin matrices with ΔW = U Vᵀ. This program reads those weights and learns to predict "
    "things about the fine-tune: how good it is, what it was trained on. (U, V) and (UR, VR⁻ᵀ) are the same LoRA for every invertible R, "
    "so the models that do well here are those that do not care about R."
)

with st.container(border=True):
    st.subheader(zoo.name)
    st.caption(str(zoo.folder))
    with st.container(horizontal=True, gap="large"):
        st.metric("LoRAs", f"{len(zoo):,}")
        st.metric("Refused files", f"{len(zoo.refused):,}")
        st.metric("Label columns", zoo.labels.shape[1])
        st.metric("Ranks", ", ".join(str(r) for r in sorted({r for e in zoo.entries for r in e.ranks})) or "–")
    if len(zoo):
        table = zoo.table()
        counts = table.groupby(["dialect", table["base model"].fillna("not named"), table["suggested base"].fillna("unknown")]).size()
        st.dataframe(
            counts.rename("LoRAs").reset_index().rename(columns={"base model": "base model, as claimed", "suggested base": "base model, by shapes"}),
            hide_index=True,
        )
    else:
        st.info("No LoRA could be read here. The Zoo page lists each file with the reason, if there are any.")

st.subheader("What next")
steps = st.columns(4)
with steps[0].container(border=True, height="stretch"):
    st.markdown("**1 · Look**\n\nEvery file with its dialect, base model, rank and labels, and for what was refused the reason.")
    page_link("pages/Zoo.py", "Open the Zoo", ":material/table_rows:")
with steps[1].container(border=True, height="stretch"):
    st.markdown("**2 · Train**\n\nFit GL-net, or another of the five LoL models, to predict one of the labels. Live curves, seconds on the sample zoo.")
    page_link("pages/Train.py", "Train a model", ":material/model_training:")
with steps[2].container(border=True, height="stretch"):
    st.markdown("**3 · Turn R**\n\nTransform a LoRA by random invertible matrices: the same function, other weights. See which predictions move.")
    page_link("pages/Invariance.py", "See invariance", ":material/rotate_right:")

with steps[3].container(border=True, height="stretch"):
    st.markdown("**4 · See**\n\nWhat the LoRAs draw that a model ranks highest and lowest, beside the base model, from the same prompts and seeds.")
    page_link("pages/Images.py", "Look at images", ":material/image:")

st.subheader("Open something else")
left, right = st.columns(2)
with left:
    st.markdown("**A folder of LoRAs**: type its path under *Collection* in the sidebar. Every dialect is read; nothing is written into the folder.")
    st.markdown("**A zoo that came with the program**, fine-tuned for real:")

    def open_sample(name: str) -> None:
        set_url("collection", "" if SAMPLE_ZOOS[name] == SAMPLE_ZOO else str(SAMPLE_ZOOS[name]))
        set_url("labels", "")

    with st.container(horizontal=True):
        for name, folder in SAMPLE_ZOOS.items():
            st.button(name, on_click=open_sample, args=(name,), icon=":material/pets:", disabled=zoo.folder == folder.resolve(), help=SAMPLE_SUBJECTS[name])
with right:
    checkpoint = st.text_input("A trained model (checkpoint folder)", placeholder="path of a folder with checkpoint.json")
    if checkpoint:
        try:
            opened: Checkpoint = load_checkpoint(Path(checkpoint).expanduser())
        except CheckpointError as error:
            st.error(str(error))
        else:
            path = str(Path(checkpoint).expanduser())
            if path not in session().extra_checkpoints:
                session().extra_checkpoints.append(path)
            st.success(f"Opened **{opened.title}**. It is now offered on the pages Predictions and Invariance.")
            for note in opened.compare(zoo):
                st.warning(note)

models = checkpoints(zoo)
st.caption(f"{len(models)} trained models for this collection." if models else "No model has been trained on this collection yet.")
