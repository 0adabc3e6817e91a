"""A LoRA cut to a rank and taken along in a form that other programs read."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.formats.writing import forms_of, holding, packed
from lol_core.insight.anatomy import Anatomy
from lol_core.insight.rewriting import Resized
from ui.jobs import sentence
from ui.keys import key


@st.cache_data(max_entries=2, show_spinner="Writing …")
def written(digest: str, form: str, width: str, name: str, _lora: LoRA) -> tuple[str, bytes]:
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
        form, width = _choose_form(b, c, forms, lora.dialect, given=holding(lora))
        cut = resized(digest, rank, anatomy)
        module, worst = cut.worst
        most = f"; at most {worst:.3g}, in `{module}`" if cut.lost > 1e-6 else ""
        parameters = f"{cut.lora.parameters:,} of {lora.parameters:,} parameters"
        st.markdown(f"‖ΔW − ΔW′‖ / ‖ΔW‖ = **{cut.lost:.3g}** over all modules{most}. {parameters}.")
        _offer(st.container(), cut.lora, f"{digest}-{rank}", f"{name}-rank{rank}", form=form, width=width)
    else:
        st.caption(
            "Its update is no product of two factors in every module (LoKr), so it cannot be written in another form."
        )


def show_download(lora: LoRA, digest: str, name: str, *, given: torch.dtype) -> None:
    """A LoRA as a file, in a form that it has. digest: tells its content from every other, of all visitors; name: the
    file's name; given: the numbers of what it was made of.
    """
    forms = forms_of(lora)
    if not forms:
        st.caption("No other program has a form for it.")
        return
    a, b, c = st.columns([2, 2, 3], vertical_alignment="bottom")
    form, width = _choose_form(a, b, forms, lora.dialect, given=given)
    _offer(c, lora, digest, name, form=form, width=width)


def _choose_form(
    a: DeltaGenerator, b: DeltaGenerator, forms: Sequence[str], dialect: str, *, given: torch.dtype
) -> tuple[str, str]:
    """The form and the type of numbers: at first the form that the LoRA came in, whose names the same models know, and
    the numbers that were given.
    """
    text = "The names and files that other programs expect."
    own = next((form for form in forms if dialect.startswith(form)), forms[0])
    form = a.selectbox("Form", forms, index=forms.index(own), key=key(f"form {own}"), help=text)
    widths, came = ["float16", "bfloat16", "float32"], str(given).removeprefix("torch.")
    text = f"They came as {came}. A narrower type rounds them."
    return form, b.selectbox("Numbers", widths, index=widths.index(came), key=key(f"dtype {came}"), help=text)


def _offer(place: DeltaGenerator, lora: LoRA, digest: str, name: str, *, form: str, width: str) -> None:
    try:
        file, content = written(digest, form, width, name, lora)
    except LoLError as error:
        st.error(sentence(error))
        return
    label, icon = f"Download ({len(content) / 1000:,.0f} kB)", ":material/download:"
    place.download_button(label, content, file, icon=icon, key=key("download_lora"))
