"""What the page Edit asks for and shows of an edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.collections.samples import samples_folder
from lol_core.core.groups import GL
from lol_core.core.symmetry import promises
from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.editing import Goal, Method, unmet, wishes_of
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.tasks import Regression
from ui.figures import figure
from ui.keys import key
from ui.tables import show
from ui.work import Edited, Wish

if TYPE_CHECKING:
    from lol_core.finetuning.judge import Judge

METHODS = {
    Method.LINEAR: "linear: as the collection goes with the label",
    Method.PATTERN: "pattern: as it goes with the model's gradient",
    Method.GRADIENT: "gradient: of the model alone",
    Method.RANDOM: "random: the control",
}
HELP = (
    "All move ΔW equally far. The gradient alone turns the model's answer more often than what is drawn; linear and"
    " pattern go where the collection's LoRAs differ."
)
STRIP = 256  # pixels up to which smaller images are enlarged


def editable(models: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Those whose gradient is of ΔW and not of its factors, and that have one; those of a number come last."""
    fit = {title: one for title, one in models.items() if promises(one.model.symmetry, GL) and not one.model.memorizes}
    return dict(sorted(fit.items(), key=lambda item: isinstance(item[1].task, Regression)))


def choose_goal(checkpoint: Checkpoint, lora_reading: Sequence[float]) -> Goal:
    """The wish, as chosen on the page: at first one that is not so already by the model's reading; a number's field
    starts one deviation above it.
    """
    task = checkpoint.task
    if isinstance(task, Regression):
        wish = st.selectbox("Change", task.targets, key=key("wish"), bind="query-params")
        place = task.targets.index(wish)
        start = float(lora_reading[place]) + task.std[place]
        number = st.number_input("To", value=float(f"{start:.3g}"), step=task.std[place] / 4, key=key("number"))
        return Goal.parse(task, f"{wish}={number}")
    wishes = wishes_of(task)
    first = wishes.index(unmet(task, np.asarray(lora_reading)))
    return Goal.parse(task, st.selectbox("Change", wishes, first, key=key("wish"), bind="query-params"))


@st.cache_resource(max_entries=1, show_spinner=False)
def _judge(folder: str, modified: float) -> Judge:
    from lol_core.finetuning.judge import Judge

    return Judge.load(Path(folder))


def judge() -> Judge | None:
    """The judge of pictures that comes with the sample zoo of faces, where it and what it needs are here."""
    folder = samples_folder() / "small-judge"
    try:
        return _judge(str(folder), (folder / "model.safetensors").stat().st_mtime)
    except (OSError, ImportError, LoLError):
        return None


def show_judged(pictures: dict[str, list[Image.Image]]) -> None:
    """What the judge sees of each attribute in each column, the mean of its pictures."""
    from lol_core.finetuning.people import ATTRIBUTES

    if (judging := judge()) is None or not pictures:
        return
    rows = {title: judging.probabilities(images).mean(0).numpy() for title, images in pictures.items()}
    table = pd.DataFrame(rows, index=pd.Index(ATTRIBUTES, name="the judge sees"))
    show(table.round(2), "judged", index=True)
    st.caption(
        "The judge is a small network that was trained on pictures of drawn people and has seen no LoRA: the mean of"
        " its readings of the pictures above."
    )


def show_pictures(columns: dict[str, list[Image.Image] | None], prompts: Sequence[str]) -> None:
    """A column of pictures for each; None where they are not drawn yet."""
    for place, (title, images) in zip(st.columns(len(columns)), columns.items(), strict=True):
        with place:
            st.markdown(f"**{title}**")
            if images is None:
                st.caption("Not drawn yet.")
            for prompt, image in zip(prompts, images or (), strict=False):
                larger = image.resize((STRIP, STRIP), Image.Resampling.BICUBIC) if image.width < STRIP else image
                st.image(larger, caption=prompt, width="stretch", alt=f"{title}: {prompt}")


def show_way(wish: Wish, made: Edited, step: int) -> None:
    """What the model says along an edit, and which modules moved."""
    edit, goal = made.edit, wish.goal
    left, right = st.columns(2)
    with left:
        st.subheader("What the model says on the way")
        names = list(goal.task.columns)
        chart = plots.edit_path(edit.moved, edit.predictions, names, goal.output, step)
        data = pd.DataFrame(edit.predictions, columns=names).assign(moved=edit.moved)
        figure(chart, "way", f"Readings of the model while {goal.name} is wished", data)
    with right:
        st.subheader("Which layers moved")
        gaps = edit.by_module.reindex([name for name in edit.lora.names if name in edit.by_module])
        chart = plots.module_norms(list(gaps.index), list(gaps), "‖ΔW − ΔW₀‖ at the end")
        figure(chart, "modules", "How far each module's update moved", gaps.rename("moved").to_frame())
        strongest = edit.by_module.head(3)
        st.caption("Most of all: " + ", ".join(f"`{name}` ({gap:.3g})" for name, gap in strongest.items()) + ".")
