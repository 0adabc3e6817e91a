"""A LoRA cut to a rank and taken along in a form that other programs read."""

from __future__ import annotations

import streamlit as st
import torch

from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.formats.writing import forms_of, packed
from lol_core.insight.anatomy import Anatomy
from lol_core.insight.rewriting import Resized
from ui.jobs import sentence
from ui.keys import key


@st.cache_data(max_entries=2, show_spinner="Writing …")
def written(digest: str, rank: int, form: str, width: str, name: str, _lora: LoRA) -> tuple[str, bytes]:
    return packed(_lora, name, form, getattr(torch, width))


@st.cache_resource(max_entries=4, show_spinner="Resizing …")
def resized(digest: str, rank: int, _anatomy: Anatomy) -> Resized:
    return Resized.of(_anatomy.lora, rank, _anatomy.norms)


def show_saving(anatomy: Anatomy, digest: str, name: str) -> None:
    """The panel for it. digest: of the LoRA's content; name: what the file's name begins with."""
    lora = anatomy.lora
    st.subheader("Resize and save")
    if forms := forms_of(lora):
        a, b, c = st.columns([3, 2, 2], vertical_alignment="bottom")
        largest = rank = max(lora.ranks)
        if largest > 1:
            text = "Each module's nearest update of this rank, from its singular values."
            rank = a.slider("Rank", 1, largest, largest, key=key("resize_rank"), help=text)
        form = b.selectbox(
            "Form", forms, key=key("resize_form"), help="The names and files that other programs expect."
        )
        width = c.selectbox("Numbers", ["float16", "bfloat16", "float32"], key=key("resize_dtype"))
        cut = resized(digest, rank, anatomy)
        module, worst = cut.worst
        most = f"; at most {worst:.3g}, in `{module}`" if cut.lost > 1e-6 else ""
        parameters = f"{cut.lora.parameters:,} of {lora.parameters:,} parameters"
        st.markdown(f"‖ΔW − ΔW′‖ / ‖ΔW‖ = **{cut.lost:.3g}** over all modules{most}. {parameters}.")
        try:
            title = f"{name}-rank{rank}"
            file, content = written(digest, rank, form, width, title, cut.lora)
            label, icon = f"Download ({len(content) / 1000:,.0f} kB)", ":material/download:"
            st.download_button(label, content, file, icon=icon, key=key("download_lora"))
        except LoLError as error:
            st.error(sentence(error))
    else:
        st.caption(
            "Its update is no product of two factors in every module (LoKr), so it cannot be written in another form."
        )


def show_download(lora: LoRA, digest: str, name: str) -> None:
    """A LoRA as a file, in a form that it has. digest: tells it from every other; name: the file's name."""
    forms = forms_of(lora)
    if not forms:
        st.caption("No other program has a form for it.")
        return
    a, b, c = st.columns([2, 2, 3], vertical_alignment="bottom")
    form = a.selectbox("Form", forms, key=key("form"), help="The names and files that other programs expect.")
    width = b.selectbox("Numbers", ["float16", "bfloat16", "float32"], key=key("dtype"))
    try:
        file, content = written(digest, 0, form, width, name, lora)
        label, icon = f"Download ({len(content) / 1000:,.0f} kB)", ":material/download:"
        c.download_button(label, content, file, icon=icon, key=key("download_lora"))
    except LoLError as error:
        st.error(sentence(error))
