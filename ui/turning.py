"""An R for every module, as chosen on a page: drawn from a group, or typed."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import pandas as pd
import streamlit as st
import torch

from lol_core.core.groups import GL, GROUPS, Group, named
from lol_core.core.symmetry import TOLERANCES, given, sample_for, sample_own
from lol_core.insight.invariance import Study
from ui.frame import need, needed
from ui.keys import key
from ui.numbers import outside, refuse

Precision = Literal["float32", "float64"]
HAND, OWN = "hand", "own"
TITLES = {group.key: group.title for group in GROUPS} | {OWN: "its own", HAND: "by hand"}
EDITABLE = 16
"""The largest rank whose R is edited by hand."""
CONDITION = "How far R stretches: its largest singular value over its smallest. At 1 it rotates and reflects alone."


def choose_precision(name: str, default: Precision) -> Precision:
    options: list[Precision] = ["float32", "float64"]
    return st.segmented_control(
        "Computed in", options, default=default, key=key(name), required=True, bind="query-params"
    )


def what_is_still(precision: Precision) -> str:
    """From which change on a model counts as moved."""
    return (
        f"A relative change up to {TOLERANCES[getattr(torch, precision)]:g} counts as none: that is rounding in"
        f" {precision} where κ(R) is at most 100. With a larger κ(R) rounding may exceed it; what moves in float64 too"
        " is no rounding."
    )


def next_draw() -> None:
    st.session_state[key("draw")] += 1


def edited(r: int) -> torch.Tensor | None:
    """The r × r matrix typed into the page, None while it has no inverse."""
    start = pd.DataFrame(np.eye(r), columns=[f"column {j + 1}" for j in range(r)])
    typed = st.data_editor(start, key=key(f"R_{r}"), hide_index=True)
    R = torch.tensor(typed.fillna(0).to_numpy(np.float64))
    if torch.linalg.matrix_rank(R) == r:
        return R
    st.error(
        f"det R = {torch.linalg.det(R).item():.3g}: R has no inverse, so (UR, VR⁻ᵀ) does not exist. Change an entry."
    )
    return None


def choose_R(study: Study) -> tuple[tuple[torch.Tensor, ...], Group, Precision]:
    """R for every module, its group, and the precision, as chosen on the page."""
    choice = st.segmented_control(
        "R is drawn from",
        list(TITLES),
        format_func=TITLES.__getitem__,
        default=GL.key,
        key=key("group"),
        bind="query-params",
        required=True,
    )
    by_hand, own = choice == HAND, choice == OWN
    group = GL if by_hand or own else named(choice)
    if own:
        st.caption(study.own_groups)
    sized, text = group.conditioned and not by_hand, CONDITION
    label, bound = "κ(R) = 10^x", cast(Literal["query-params"], "query-params")
    exponent = st.slider(label, 0.0, 4.0, 1.0, 0.25, key=key("kappa"), bind=bound, disabled=not sized, help=text)
    a, b = st.columns(2)
    shared = a.segmented_control(
        "R is",
        ["own", "shared"],
        format_func={"own": "each module's", "shared": "shared"}.__getitem__,
        default="own",
        key=key("shared"),
        bind="query-params",
        required=True,
        disabled=by_hand or own,
    )
    with b:
        precision = choose_precision("dtype", "float32")
    a, b = st.columns(2, vertical_alignment="bottom")
    icon, label = ":material/casino:", "Draw another R"
    a.button(label, type="primary", icon=icon, width="stretch", on_click=next_draw, disabled=by_hand)
    text = "The seed of R: the same number gives the same R."
    draw = b.number_input("Draw", value=1, key=key("draw"), bind=bound, help=text)
    refuse(outside("Draw", draw, 1, 10**6))
    batch, r = study.start(getattr(torch, precision)), max(study.lora.ranks)
    generator, condition = torch.Generator().manual_seed(draw), 10.0**exponent if sized else 1.0
    if own:
        R = sample_own([study.lora], batch, condition=condition, generator=generator)
        return R, group, precision
    if not by_hand:
        R = sample_for(batch, group, condition=condition, generator=generator, shared=shared == "shared")
        return R, group, precision
    text = f"R is {r} × {r} here: too large to type. Draw it from a group, or choose a LoRA of rank {EDITABLE} or less."
    need(r <= EDITABLE, text)
    return given(batch, {r: needed(edited(r), "Type a matrix that has an inverse.")}), group, precision
