"""LoL Explorer: look at a collection of LoRAs, train models that read their weights, and watch invariance hold."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.errors import CheckpointError
from lol_core.learning.checkpoint import Checkpoint
from ui.frame import frame, open_collection, page_link
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

source = frame("Home", "LoL Explorer")
st.markdown(
    "A LoRA is a fine-tune of a model, stored as pairs of thin matrices with ΔW = U Vᵀ. This program reads those"
    " weights and learns to predict things about the fine-tune: how good it is, what it was trained on. (U, V) and (UR,"
    " VR⁻ᵀ) are the same LoRA for every invertible R, so the models that do well here are those that do not care"
    " about R."
)

with st.container(border=True):
    st.subheader(source.name)
    st.caption(source.address)
    with st.container(horizontal=True, gap="large"):
        st.metric("LoRAs", f"{len(source):,}")
        st.metric("Refused files", f"{len(source.refused):,}")
        st.metric("Label columns", source.labels.shape[1])
        st.metric("Ranks", ", ".join(str(r) for r in sorted({r for e in source.entries for r in e.ranks})) or "–")
    if len(source):
        table = source.table()
        counts = table.groupby(
            ["dialect", table["base model"].fillna("not named"), table["suggested base"].fillna("unknown")]
        ).size()
        st.dataframe(
            counts.rename("LoRAs")
            .reset_index()
            .rename(columns={"base model": "base model, as claimed", "suggested base": "base model, by shapes"}),
            hide_index=True,
        )
    else:
        st.info("No LoRA could be read here. The Zoo page lists each file with the reason, if there are any.")

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

st.subheader("Open something else")
left, right = st.columns(2)
with left:
    st.markdown(
        "**A folder of LoRAs**: type its path under *Collection* in the sidebar. Every dialect is read; nothing is"
        " written into the folder."
    )
    st.markdown("**A zoo that came with the program**, fine-tuned for real:")

    with st.container(horizontal=True):
        for name, place_of in SAMPLE_ZOOS.items():
            is_open, sample = source.address == str(place_of.resolve()), str(place_of)
            st.button(
                name,
                on_click=open_collection,
                args=(sample,),
                icon=":material/pets:",
                disabled=is_open,
                help=SAMPLE_SUBJECTS[name],
            )
    if others := [(address, labels) for address, labels in recent() if address != source.address]:
        st.markdown("**Opened before:**")
        for address, labels in others:
            st.button(
                address,
                on_click=open_collection,
                args=(address, labels),
                icon=":material/history:",
                type="tertiary",
                key=key(f"recent {address}"),
            )
with right:
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
    typed = st.text_input("A trained model (checkpoint folder)", placeholder="path of a folder with checkpoint.json")
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

models = checkpoints(source)
st.caption(
    f"Trained models for this collection: {len(models)}."
    if models
    else "No model has been trained on this collection yet."
)
