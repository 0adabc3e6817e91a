"""LoL Explorer: look at a collection of LoRAs, train models that read their weights, and watch invariance hold."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.collections.names import user_path
from lol_core.errors import CheckpointError
from lol_core.learning.checkpoint import Checkpoint
from ui import visit
from ui.access import access
from ui.columns import counts_of, kinds_of
from ui.frame import frame_or_nothing, open_collection, page_link
from ui.home import can_choose, choose, picture, sample_buttons
from ui.jobs import sentence
from ui.keys import key
from ui.plain import plain
from ui.state import ROOT, checkpoints, load_checkpoint, of_other_collections, recent, session
from ui.tables import show

source = frame_or_nothing("Home", "LoL Explorer")
opened_at = "" if source is None else source.address
st.markdown(
    "A LoRA is a small fine-tune of an image or language model, stored as pairs of thin matrices with ΔW = U Vᵀ. Here"
    " you look at a folder of them, and let models that read their weights say how good each is, or what it was"
    " trained on. (U, V) and (UR, VR⁻ᵀ) are the same LoRA for every invertible R: watch which models know."
)

look, own, teach = st.columns(3)
with look.container(border=True, height="stretch"):
    st.markdown("#### Look around")
    picture("people", "Drawn people on a beach: three ranked highest, three lowest")
    st.caption("*A person on the beach*: above by the LoRAs that GL-net ranks highest, below by the lowest.")
    sample_buttons(opened_at)
    if access().sample(visit.ZOO) is not None:
        visit.door()
with own.container(border=True, height="stretch"):
    served = access().served
    st.markdown("#### Open a collection" if served else "#### Open my LoRAs")
    picture("map", "Points of a map, coloured by a label")
    st.caption("A map of a collection, coloured by a label. Only headers are read at first; nothing is written there.")
    typed = st.text_input(
        "One of this server, or hf://owner/name" if served else "A folder, a .zip or .tar, or hf://owner/name",
        placeholder="hf://owner/name" if served else "~/models/loras",
        key=key("address"),
        help=("" if served else "Also one LoRA, or the URL of one or of an archive. ")
        + "Every dialect is read; what cannot be read is listed with the reason.",
    )
    with st.container(horizontal=True):
        st.button("Open", type="primary", disabled=not typed, on_click=open_collection, args=(typed,))
        if can_choose():
            st.button("Choose a folder …", icon=":material/folder:", on_click=choose)
    if source is not None and opened_at not in access().zoos.values():
        page_link("pages/Zoo.py", f"Look at {source.name}: {len(source):,} LoRAs", ":material/table_rows:")
    for address, labels in [(address, labels) for address, labels in recent() if address != opened_at][:3]:
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
    picture("needles", "Two dials: the needle of GL-net stays, that of MLP + O-Align moves")
    st.caption("The same LoRA with other factors: the needle of GL-net stays, that of MLP + O-Align moves.")
    page_link("pages/Invariance.py", "Turn R", ":material/rotate_right:")
    page_link("pages/Experiments.py", "The paper's tables", ":material/science:")
    if (ROOT / "notebooks").is_dir() and not access().served:
        st.caption("Nine notebooks: `make lab`.")

if access().sample(visit.ZOO) is not None:
    st.subheader("A first visit: two minutes, nothing to train")
    visit.overview()

if source is None:
    st.stop()
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
elsewhere = of_other_collections(source)
if served and not elsewhere:
    st.stop()
with st.expander("Open a trained model", icon=":material/model_training:"):
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
    typed = (
        ""
        if served
        else st.text_input(
            "A trained model (checkpoint folder)",
            placeholder="path of a folder with checkpoint.json",
            key=key("checkpoint"),
        )
    )
    for folder in ([str(user_path(typed))] if typed else []) + ([str(elsewhere[picked])] if picked else []):
        try:
            opened: Checkpoint = load_checkpoint(Path(folder))
        except CheckpointError as error:
            st.error(sentence(error))
            continue
        if folder not in session().extra_checkpoints:
            session().extra_checkpoints.append(folder)
        pages = "Map, Predictions, Invariance, Images and Edit"
        st.success(f"Opened **{plain(opened.title)}**. It can be chosen on the pages {pages}.")
        for note in opened.compare(source):
            st.warning(note)
