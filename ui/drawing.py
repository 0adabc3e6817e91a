"""What to draw images with, as chosen on a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lol_core.collections.layouts.beside import Beside, json_object
from lol_core.collections.source import Source
from lol_core.insight.generation import Sampling
from lol_core.learning.devices import devices
from ui.access import access
from ui.keys import key
from ui.numbers import outside, refuse
from ui.plain import plain
from ui.state import bases_of, known_base

MOST = 3
"""Base models that a message lists."""
BASE = "Base model"
"""What is called so is drawn without a LoRA."""
PROMPTS = ("a person on the beach", "a dog in a park", "a church on a blue background")


@dataclass(frozen=True)
class Drawing:
    """base: a folder in diffusers form or a hub id; device: of `learning.devices`."""

    base: str
    device: str
    prompts: tuple[str, ...]
    sampling: Sampling


def choose_drawing(source: Source, first: Sequence[str] = ()) -> Drawing | None:
    """What to draw with, at first what the collection's recipe says; None, with what is missing on the page, where
    nothing can be drawn. first: the prompts to start with instead.
    """
    known, recipe = known_base(source), json_object(Beside(source).read("recipe.json"))
    with st.expander(
        "Base model, prompts and sampling", icon=":material/tune:", key=key("settings"), expanded=not known
    ):
        a, b = st.columns([3, 1])
        base = _choose_base(a, known)
        device = b.selectbox("Device", ["auto", *devices()], key=key("device"))
        lines = "\n".join(first or recipe.get("preview_prompts") or PROMPTS)
        text = st.text_area("Prompts, one a line", lines, key=key("prompts"), bind="query-params", height=110)
        a, b, c = st.columns(3)
        seed = a.number_input("Seed", value=int(recipe.get("score_seed", 42)), key=key("seed"))
        steps = b.number_input("Sampling steps", value=int(recipe.get("sampling_steps", 20)), key=key("steps"))
        help_text, guidance = "1: none. Stable Diffusion: about 7.5.", float(recipe.get("guidance", 7.5))
        guidance = c.number_input("Guidance", value=guidance, key=key("guidance"), help=help_text)
    refuse(
        outside("Seed", seed, 0, 2**31 - 1),
        outside("Sampling steps", steps, 1, 200),
        outside("Guidance", guidance, 1, 30),
    )
    where = (
        "above: one of this server's"
        if access().served
        else "above: a folder in diffusers form on this computer, or a hub id such as `CompVis/stable-diffusion-v1-4`"
    )
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    missing = (
        f"To draw images, name the base model these LoRAs were trained on, {where}. {_named(source)}"
        if not base
        else ""
        if prompts
        else "Write at least one prompt."
    )
    if missing:
        st.info(missing, icon=":material/arrow_forward:")
        return None
    return Drawing(base, device, prompts, Sampling(seed=seed, steps=steps, guidance=guidance))


def _named(source: Source) -> str:
    """Which base models the files name, the most frequent first."""
    counts: Counter[str] = Counter()
    for (claimed, suggested), count in bases_of(source).items():
        counts[claimed or suggested or "nothing"] += count
    if len(counts) == 1:
        return f"The files say: {plain(*counts)}."
    named = ", ".join(f"{plain(name)} ({count:,})" for name, count in counts.most_common(MOST))
    others = f" and {len(counts) - MOST:,} others" if len(counts) > MOST else ""
    return f"The files say: {named}{others}. Only LoRAs of the one that is named can be drawn."


def _choose_base(place: DeltaGenerator, known: str) -> str:
    """A folder in diffusers form or a hub id; on a server for others one of the folders that it offers, as a base model
    is loaded whole into its memory. Empty when none is chosen.
    """
    text = "The text-to-image model these LoRAs were trained on."
    if not access().served:
        return place.text_input(
            "Base model",
            known,
            key=key("base"),
            bind="query-params",
            placeholder="a diffusers folder, or a hub id",
            help=text,
        )
    bases = access().bases
    first = next((i for i, folder in enumerate(bases.values()) if str(folder) == known), None)
    name = place.selectbox("Base model", list(bases), first, key=key("base"), bind="query-params", help=text)
    return "" if name is None else str(bases[name])
