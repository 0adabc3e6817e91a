"""What the LoRAs draw: those with the highest and the lowest score side by side, beside the base model, with the
same prompts and seeds.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.collections.source import Source
from lol_core.errors import LoRAFormatError
from lol_core.insight import plots
from lol_core.insight.generation import contact_sheet, weights_file
from lol_core.insight.ranking import Ranking, by_label, by_prediction, held_out, measured_numbers
from lol_core.learning.devices import find_device
from lol_core.learning.tasks import Regression
from ui import work
from ui.choice import choose_loras
from ui.drawing import choose_drawing
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.jobs import running
from ui.keys import key
from ui.points import walk_points
from ui.previews import link_to_lora, show_towers
from ui.progress import follow
from ui.selection import marked, selected, visible
from ui.state import checkpoints, known_base, load_checkpoint, loaded_checkpoints, painter, session

STRIP = 9  # previews along the ranking
MAX_ALSO = 3
SIDE = 256  # pixels up to which smaller images are enlarged
FORWARD = ":material/arrow_forward:"
source = frame("Images", loras=True)
state = session()


@st.cache_data(max_entries=8, show_spinner="Predicting every LoRA …")
def predicted(folder: str, created: str, label: str, fingerprint: str, _source: Source) -> tuple[pd.Series, list[str]]:
    """Predictions of a label, and the LoRAs that were held out."""
    model = load_checkpoint(Path(folder))
    table, _ = model.predict_zoo(_source)
    return table[label], held_out(model, _source, list(table.index))


def choose_ranking() -> Ranking | None:
    """What the LoRAs are ranked by, as chosen on the page; None, with what to do about it, where fewer than two have a
    score.
    """
    folders, numbers = checkpoints(source), measured_numbers(source)
    models = {t: model for t, model in loaded_checkpoints(source).items() if isinstance(model.task, Regression)}
    ways = {f"{label} predicted by {t}": (label, t) for t, model in models.items() for label in model.task.targets}
    ways |= {f"{label}, measured": (label, "") for label in numbers}
    if not ways:
        words = "To rank LoRAs there must be a label with numbers, or a model that predicts one."
        st.info(f"{words} Any can be drawn without.", icon=FORWARD)
        return None
    if not models:
        words = "No model that predicts a number has been trained here yet"
        st.info(f"{words}, so the ranking below is by measured labels.", icon=FORWARD)
        label = "clip_score" if "clip_score" in numbers else numbers[0]
        page_link("pages/Train.py", f"Train GL-net to predict {label}", ":material/model_training:", targets=label)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    titles = sorted(ways, key=lambda title: ways[title][0] != "clip_score")  # CLIP scores first
    label, model = ways[left.selectbox("Rank by", titles, key=key("rank_by"), bind="query-params")]
    ranking = by_label(source, label) if not model else None
    if ranking is None:
        values, out = predicted(str(folders[model]), models[model].created, label, source.fingerprint, source)
        words = "test: LoRAs the model did not see in training."
        which = right.segmented_control("Of", ["test", "all"], default="test", key=key("which"), help=words)
        ranking = by_prediction(source, label, values.loc[out] if which != "all" and out else values)
    if len(among := visible(source)) < len(source):
        ranking = ranking.among(among)
        st.caption(f"Among the {len(among):,} selected, of which {len(ranking.scores):,} have a score here.")
    if len(ranking.scores) < 2:
        st.info("Fewer than two LoRAs have a score here, so there is no ranking.", icon=FORWARD)
        return None
    return ranking


ranking = choose_ranking()
base, device, prompts, sampling = choose_drawing(source)
chosen: dict[str, str] = {}
a, b = st.columns(2)
words = "ΔW is multiplied by this. 0 is the base model."
strength = b.slider("Strength of the LoRA", 0.0, 2.0, 1.0, 0.05, key=key("strength"), bind="query-params", help=words)
if ranking is not None:
    ids, count = list(ranking.scores.index), len(ranking.scores)
    words, middle = "1 is the highest.", 1 + count // 2
    place = a.slider("Walk along the ranking", 1, count, middle, key=key("place"), bind="query-params", help=words)
    table = ranking.table
    figure(
        plots.ranking(
            ranking.scores, table["measured"] if ranking.predicted else None, ranking.label, selected(source)
        ),
        "ranking",
        "Scores in order of rank",
        table.assign(name=[source.names[id] for id in ids]),
        on_select=lambda: marked(source, "ranking"),
        selection_mode=("points", "box", "lasso"),
    )
    along = np.unique(np.linspace(0, count - 1, STRIP).round().astype(int))
    show_towers(source, [ids[i] for i in along], [f"#{i + 1}" for i in along])
    chosen = {"Highest": ids[0], f"Rank {place}": ids[place - 1], "Lowest": ids[-1]}
also = choose_loras(
    source,
    source.ids,
    "also",
    "Also draw" if chosen else "LoRAs to draw",
    place=None if chosen else a,
    default=[] if chosen else source.ids[:1],
    max_selections=MAX_ALSO,
    placeholder="any LoRA of the collection",
)
chosen |= {source.names[id]: id for id in also}
need(chosen, "Choose a LoRA to draw.")
columns: dict[str, str | None] = {**chosen, "Base model": None}
sampling = sampling.with_strength(strength)
brush = painter(base, str(find_device(device)))
try:
    files = {id: None if id is None else weights_file(source, id) for id in columns.values()}
    missing = [id for id, file in files.items() if not all(brush.is_drawn(file, p, sampling) for p in prompts)]
except LoRAFormatError as problem:
    st.error(str(problem), icon=":material/broken_image:")
    st.stop()
except OSError as problem:
    st.error(f"A LoRA file cannot be read any more: {problem}. Press **Look for changes** in the sidebar.")
    st.stop()
busy, job = running(state.drawing), state.drawing
automatic = base == known_base(source) and not (job is not None and (job.error or job.stopping))
pressed = st.button("Draw", type="primary", icon=":material/brush:", disabled=busy or not missing, key=key("draw"))
if missing and not busy and (pressed or automatic):
    state.drawing = work.draw_sheets(brush, [files[id] for id in missing], prompts, sampling)
    st.rerun()
if job is not None:
    follow(job, "stop")
    if job.stopping and not busy:
        st.caption("Stopped. Press **Draw** to go on.")

rows: list[list[Image.Image]] = [[] for _ in prompts]
shown: list[str] = []
for column, (title, id) in zip(st.columns(len(columns)), columns.items(), strict=True):
    lines = [
        "without any LoRA" if id is None else source.names[id],
        *(ranking.words(id) if ranking is not None else ()),
    ]
    with column:
        st.markdown(f"**{title}**")
        st.caption("  \n".join(lines))
        if id in missing:
            st.caption("Not drawn yet.")
            continue
        shown.append("\n".join([title, *lines]))
        for row, prompt, image in zip(rows, prompts, brush.draw(files[id], prompts, sampling), strict=True):
            row.append(image)
            larger = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if image.width < SIDE else image
            st.image(larger, caption=prompt, width="stretch")
if len(shown) == len(columns):
    buffer = io.BytesIO()
    contact_sheet(rows, shown, prompts).save(buffer, "PNG")
    name, icon = f"{source.name}-{ranking.label if ranking else 'images'}.png", ":material/download:"
    st.download_button("Download the grid", buffer.getvalue(), name, "image/png", icon=icon)
with st.container(horizontal=True):
    for title, id in chosen.items():
        link_to_lora(source, id, f"{title}: look inside")
walk_points(source, [] if ranking is None else list(ranking.scores.index))
