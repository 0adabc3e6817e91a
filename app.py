"""LoL Explorer: look at a collection of LoRAs, train models that read their weights, and watch invariance hold."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.errors import CheckpointError
from lol_core.learning.checkpoint import Checkpoint
from ui.columns import counts_of, kinds_of
from ui.frame import frame, open_collection, page_link
from ui.home import can_choose, choose, picture
from ui.keys import key
from ui.state import (
    SAMPLE_SUBJECTS,
    SAMPLE_ZOOS,
    checkpoints,
    load_checkpoint,
    of_other_collections,
    recent,
    session,
    trained,
)
from ui.tables import show

source = frame("Home", "LoL Explorer")
st.markdown(
    "A LoRA is a small fine-tune of an image or language model, stored as pairs of thin matrices with ΔW = U Vᵀ. Here"
    " you look at a folder of them, and let models that read their weights say how good each is, or what it was"
    " trained on. (U, V) and (UR, VR⁻ᵀ) are the same LoRA for every invertible R: watch which models know."
)

look, own, teach = st.columns(3)
with look.container(border=True, height="stretch"):
    st.markdown("#### Look around")
    picture("people")
    st.caption("*A person on the beach*: above by the LoRAs that GL-net ranks highest, below by the lowest.")
    with st.container(horizontal=True):
        for name, sample in SAMPLE_ZOOS.items():
            st.button(
                name,
                on_click=open_collection,
                args=(str(sample),),
                icon=":material/folder_open:",
                disabled=source.address == str(sample.resolve()),
                help=f"{SAMPLE_SUBJECTS[name]}, fine-tuned for real",
            )
    page_link("pages/Images.py", "See what they draw", ":material/image:")
with own.container(border=True, height="stretch"):
    st.markdown("#### Open my LoRAs")
    picture("map")
    st.caption("A map of a collection, coloured by a label. Only headers are read at first; nothing is written there.")
    typed = st.text_input(
        "A folder, a .zip or .tar, or hf://owner/name",
        placeholder="~/models/loras",
        key=key("address"),
        help="Also an archive's URL. Every dialect is read; what cannot be read is listed with the reason.",
    )
    with st.container(horizontal=True):
        st.button("Open", type="primary", disabled=not typed, on_click=open_collection, args=(typed,))
        if can_choose():
            st.button("Choose a folder …", icon=":material/folder:", on_click=choose)
    for address, labels in [(address, labels) for address, labels in recent() if address != source.address][:3]:
        st.button(
            address,
            on_click=open_collection,
            args=(address, labels),
            icon=":material/history:",
            type="tertiary",
            key=key(f"recent {address}"),
        )
with teach.container(border=True, height="stretch"):
    st.markdown("#### Teach and learn")
    picture("needles")
    st.caption("The same LoRA with other factors: the needle of GL-net stays, that of MLP + O-Align moves.")
    page_link("pages/Invariance.py", "Turn R", ":material/rotate_right:")
    page_link("pages/Experiments.py", "The paper's tables", ":material/science:")
    st.caption("Eight notebooks: `make lab`.")

STEPS = (
    (
        "Look",
        "Zoo",
        "Every file with its dialect, base model, rank, labels and previews, and for what was refused the reason.",
        "Open the Zoo",
        "table_rows",
    ),
    (
        "Train",
        "Train",
        "Fit GL-net, or another LoL model, to predict a label: seconds on glosses.",
        "Train a model",
        "model_training",
    ),
    (
        "Turn R",
        "Invariance",
        "The same LoRA with other factors: see which models notice, and which cannot.",
        "See invariance",
        "rotate_right",
    ),
    (
        "See",
        "Images",
        "What the LoRAs draw that a model ranks highest and lowest, beside the base model.",
        "Look at images",
        "image",
    ),
)
done = {page for _, page, *_ in STEPS if page in session().visited and (page != "Train" or trained(source))}
ahead = next((page for _, page, *_ in STEPS if page not in done), None)
st.subheader("A first visit" if len(done) < 3 else "Go on")
for i, (place, (name, page, text, link, icon)) in enumerate(zip(st.columns(len(STEPS)), STEPS, strict=True), 1):
    with place.container(border=True, height="stretch"):
        mark = " :green[:material/check_circle:]" if page in done else " :blue-badge[next]" if page == ahead else ""
        st.markdown(f"**{i} · {name}**{mark}\n\n{text}")
        page_link(f"pages/{page}.py", link, f":material/{icon}:")

st.subheader("What is open")
with st.container(border=True):
    st.subheader(source.name)
    st.caption(source.address)
    with st.container(horizontal=True, gap="large"):
        st.metric("LoRAs", f"{len(source):,}")
        st.metric("Refused files", f"{len(source.refused):,}")
        st.metric("Label columns", source.labels.shape[1])
        st.metric("Ranks", ", ".join(map(str, sorted(counts_of(source, "rank")))) or "–")
    if len(source):
        show(kinds_of(source), "kinds")
    else:
        st.info("No LoRA could be read here. The Zoo page lists each file with the reason, if there are any.")

models = checkpoints(source)
st.caption(
    f"Trained models for this collection: {len(models)}."
    if models
    else "No model has been trained on this collection yet."
)
with st.expander("Open a trained model", icon=":material/model_training:"):
    elsewhere = of_other_collections(source)
    picked = (
        st.selectbox(
            "A model trained on another collection",
            list(elsewhere),
            index=None,
            placeholder="choose one to use it here",
        )
        if elsewhere
        else None
    )
    typed = st.text_input(
        "A trained model (checkpoint folder)",
        placeholder="path of a folder with checkpoint.json",
        key=key("checkpoint"),
    )
    for folder in ([str(Path(typed).expanduser())] if typed else []) + ([str(elsewhere[picked])] if picked else []):
        try:
            opened: Checkpoint = load_checkpoint(Path(folder))
        except CheckpointError as error:
            st.error(str(error))
            continue
        if folder not in session().extra_checkpoints:
            session().extra_checkpoints.append(folder)
        st.success(f"Opened **{opened.title}**. It is now offered on the pages Predictions and Invariance.")
        for note in opened.compare(source):
            st.warning(note)
