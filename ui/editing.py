"""What the page Edit asks for and shows of an edit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from lol_core.core.groups import GL
from lol_core.core.lora import LoRA
from lol_core.core.symmetry import promises
from lol_core.insight import plots
from lol_core.insight.anatomy import Comparison
from lol_core.insight.editing import Method
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.goal import Goal, unmet
from ui.choice import look_at_link
from ui.figures import figure
from ui.keys import key
from ui.work import Edited, Wish

METHODS = {
    Method.LINEAR: "linear: as the collection goes with the label",
    Method.PATTERN: "pattern: as it goes with the model's gradient",
    Method.EQUIVARIANT: "equivariant: a network trained to edit",
    Method.GRADIENT: "gradient: of the model alone",
    Method.RANDOM: "random: the control",
}
HELP = (
    "All move ΔW equally far. The gradient alone turns the model's answer more often than what is drawn; linear and"
    " pattern go where the collection's LoRAs differ; the network has learnt from both. Where none comes with the"
    " model it is trained first, in minutes."
)


def editable(models: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Those whose gradient is of ΔW and not of its factors, and that have one; those of a number come last."""
    fit = {title: one for title, one in models.items() if promises(one.model.symmetry, GL) and not one.model.memorizes}
    return dict(sorted(fit.items(), key=lambda item: not item[1].task.probabilities))


def choose_goal(checkpoint: Checkpoint, lora_reading: Sequence[float]) -> Goal:
    """The wish, as chosen on the page: at first one that is not so already by the model's reading; a number's field
    starts one deviation above it.
    """
    task = checkpoint.task
    look_at_link("wish", "change", task.wishes if task.probabilities else task.targets)
    if not task.probabilities:
        wish = st.selectbox("Change", task.targets, key=key("wish"), bind="query-params")
        place = task.targets.index(wish)
        start = float(lora_reading[place]) + task.units[place]
        number = st.number_input("To", value=float(f"{start:.3g}"), step=task.units[place] / 4, key=key("number"))
        return Goal.parse(task, f"{wish}={number}")
    wishes = task.wishes
    first = wishes.index(unmet(task, np.asarray(lora_reading)))
    return Goal.parse(task, st.selectbox("Change", wishes, first, key=key("wish"), bind="query-params"))


@st.cache_data(max_entries=64, show_spinner=False)
def moved_in_all(edit: str, step: int, _original: LoRA, _lora: LoRA) -> float:
    """‖ΔW − ΔW₀‖ / ‖ΔW₀‖ from the LoRA that the first edit began with."""
    return Comparison.of(_original, _lora).distance


def show_way(wish: Wish, made: Edited, step: int) -> None:
    """What the model says along an edit, and which modules moved."""
    edit, goal = made.edit, wish.goal
    left, right = st.columns(2)
    with left:
        st.subheader("The model on the way")
        names = list(goal.task.columns)
        chart = plots.edit_path(edit.moved, edit.predictions, names, goal.output, step=step)
        data = pd.DataFrame(edit.predictions, columns=names).assign(moved=edit.moved).rename_axis("step").reset_index()
        figure(chart, "way", f"Readings of the model while {goal.name} is wished", data)
    with right:
        st.subheader("Which layers moved")
        gaps = edit.gaps.iloc[step]
        figure(
            plots.module_norms(list(gaps.index), list(gaps), "‖ΔW − ΔW₀‖"),
            "modules",
            f"How far each module's update has moved at step {step}",
            gaps.rename("moved").rename_axis("module").to_frame(),
        )
        strongest = gaps.nlargest(3)
        st.caption(
            f"At step {step}, most: " + ", ".join(f"`{name}` ({gap:.3g})" for name, gap in strongest.items()) + "."
        )
