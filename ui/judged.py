"""What files draw, side by side, with what a judge of pictures sees in each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.collections.samples import samples_folder
from lol_core.collections.source import Source
from lol_core.errors import LoLError
from lol_core.learning.devices import find_device
from ui import work
from ui.drawing import choose_drawing
from ui.jobs import running
from ui.keys import key
from ui.plain import plain
from ui.progress import follow
from ui.state import known_base, painter, session
from ui.tables import numbers, show

if TYPE_CHECKING:
    from lol_core.finetuning.judge import Judge

WORD = "prompt"  # the label with the word that a LoRA was trained under
PROMPT = f"a {{{WORD}}}"
STRIP = 256  # pixels up to which smaller images are enlarged


def show_drawn(source: Source, files: Mapping[str, Path | None], ids: Sequence[str]) -> None:
    """A column of pictures for each file (None: the base model alone), of the same prompts and seeds, drawn beside the
    page. ids: the LoRAs whose words the prompts are filled with.
    """
    state, known = session(), WORD in source.labels
    drawing = choose_drawing(source, [PROMPT] if known else [])
    if drawing is None:
        return
    words = [str(source.labels[WORD].get(id, "")) for id in ids] if known else [""]
    filled = (line.replace(f"{{{WORD}}}", word) for line in drawing.prompts for word in words)
    prompts = tuple(dict.fromkeys(filled))
    brush, job = painter(drawing.base, str(find_device(drawing.device))), state.drawing_edit
    missing = [
        file for file in files.values() if not all(brush.is_drawn(file, prompt, drawing.sampling) for prompt in prompts)
    ]
    busy, failed = running(job), job is not None and bool(job.error or job.stopping)
    again = bool(missing) and failed and not busy and st.button("Draw", icon=":material/brush:", key=key("draw"))
    if missing and not busy and (again or not failed):
        state.drawing_edit = work.draw_files(brush, missing, prompts, drawing.sampling)
        st.rerun()
    if job is not None:
        follow(job, "stop_drawing")
    drawn = {
        title: None if file in missing else brush.draw(file, prompts, drawing.sampling) for title, file in files.items()
    }
    _show_pictures(drawn, prompts)
    if drawing.base == known_base(source):
        _show_readings(source, {title: images for title, images in drawn.items() if images})


def _show_pictures(columns: Mapping[str, Sequence[Image.Image] | None], prompts: Sequence[str]) -> None:
    row = st.container(horizontal=True)  # two in a row on a phone, where columns would stand one below another
    for title, images in columns.items():
        with row.container():
            st.markdown(f"**{plain(title)}**")
            if images is None:
                st.caption("Not drawn yet.")
            for prompt, image in zip(prompts, images or (), strict=False):
                larger = image.resize((STRIP, STRIP), Image.Resampling.BICUBIC) if image.width < STRIP else image
                st.image(larger, caption=plain(prompt), width="stretch", alt=f"{title}: {prompt}")


def _show_readings(source: Source, pictures: Mapping[str, Sequence[Image.Image]]) -> None:
    """How sure the judge is of each attribute that is a label here, the mean over each column's pictures."""
    from lol_core.finetuning.people import ATTRIBUTES

    asked = [name for name in ATTRIBUTES if name in source.labels]
    if not asked or not pictures or (judging := _judge()) is None:
        return
    rows = {title: 100 * judging.probabilities(images).mean(0).numpy() for title, images in pictures.items()}
    table = pd.DataFrame(rows, index=pd.Index(ATTRIBUTES, name="the judge sees")).loc[asked]
    show(table, "judged", index=True, column_config=numbers("%.0f%%", rows))
    st.caption(
        "The judge is a small network that was trained on pictures of drawn people and has seen no LoRA: the mean of"
        " its readings of the pictures above."
    )


@st.cache_resource(max_entries=1, show_spinner=False)
def _load_judge(folder: str, modified: float) -> Judge:
    from lol_core.finetuning.judge import Judge

    return Judge.load(Path(folder))


def _judge() -> Judge | None:
    """The judge of pictures that comes with the sample zoo of faces, where it and what it needs are here."""
    folder = samples_folder() / "small-judge"
    try:
        return _load_judge(str(folder), (folder / "model.safetensors").stat().st_mtime)
    except (OSError, ImportError, LoLError):
        return None
