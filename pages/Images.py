"""What the LoRAs draw: those with the highest and the lowest score side by side, beside the base model, with the
same prompts and seeds.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.generation import contact_sheet, known_weights_file
from lol_core.insight.ranking import Ranking, by_label, by_prediction, held_out, measured_numbers, ways
from lol_core.learning.devices import find_device
from ui import work
from ui.access import access
from ui.choice import choose_loras, look_at_link
from ui.drawing import BASE, choose_drawing
from ui.figures import as_png, figure
from ui.frame import frame, need, page_link
from ui.jobs import running, sentence
from ui.keys import key
from ui.plain import plain
from ui.points import walk_points
from ui.predicting import answers_of
from ui.previews import link_to_lora, show_towers
from ui.progress import follow
from ui.selection import marked, selected, visible
from ui.state import checkpoints, known_base, loaded_checkpoints, painter, session

STRIP = 8  # previews along the ranking, four in a row on a phone
MAX_ALSO = 3
NAMED = 3  # LoRAs that a remark names
SIDE = 256  # pixels up to which smaller images are enlarged
FORWARD = ":material/arrow_forward:"
source = frame("Images", loras=True)
state = session()


def choose_ranking() -> Ranking | None:
    """What the LoRAs are ranked by, as chosen on the page; None, with what to do about it, where fewer than two have a
    score.
    """
    folders, models = checkpoints(source), loaded_checkpoints(source)
    offered = ways(source, models)
    if not offered:
        text = "To rank LoRAs there must be a label with numbers, or a model that predicts one."
        st.info(f"{text} Any can be drawn without.", icon=FORWARD)
        return None
    if not any(predictor for _, predictor in offered.values()):
        text = "No model that predicts a number has been trained here yet"
        st.info(f"{text}, so the ranking below is by measured labels.", icon=FORWARD)
        label = measured_numbers(source)[0]
        page_link("pages/Train.py", f"Train GL-net to predict {label}", ":material/model_training:", targets=label)
    look_at_link("rank_by", "ranking by", offered)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    answers = None
    label, predictor = offered[left.selectbox("Rank by", list(offered), key=key("rank_by"), bind="query-params")]
    if predictor is None:
        ranking = by_label(source, label)
    else:
        if (answers := answers_of(source, folders[predictor])) is None:
            st.stop()
        values = answers.values[label]
        if not len(values):
            st.info(f"{plain(predictor)} can read none of these LoRAs, so there is no ranking by it.", icon=FORWARD)
            return None
        text = "test: LoRAs the model did not see in training."
        which = right.segmented_control("Of", ["test", "all"], default="test", key=key("which"), help=text)
        kept = held_out(models[predictor], source, list(values.index)) if which != "all" else []
        ranking = by_prediction(source, label, values.loc[kept] if kept else values)
    if len(among := visible(source)) < len(source):
        ranking = ranking.among(among)
        st.caption(f"Among the {len(among):,} selected, of which {len(ranking.scores):,} have a score here.")
    if len(ranking.scores) < 2:
        st.info("Fewer than two LoRAs have a score here, so there is no ranking.", icon=FORWARD)
        return None
    if answers is not None:
        say_which_are_guesses(ranking, answers.marks)
    return ranking


def say_which_are_guesses(ranking: Ranking, marks: pd.DataFrame) -> None:
    """Of the LoRAs that a model ranks those unlike its training's, the ends of the ranking first."""
    strange = marks.index[marks["outside"].astype(bool)]
    places = {id: place for place, id in enumerate(ranking.scores.index, 1) if id in strange}
    ends = sorted(places.items(), key=lambda item: min(item[1], len(ranking.scores) - item[1]))
    if ends:
        first = ", ".join(f"{plain(source.names[id])} (#{place})" for id, place in ends[:NAMED])
        more = " and others" if len(ends) > NAMED else ""
        st.caption(
            f"Unlike the LoRAs that the model was trained on, so that the place is a guess: {len(ends):,} of"
            f" {len(ranking.scores):,}, {first}{more}. *Predictions* marks them as *outside*."
        )


ranking = choose_ranking()
if (drawing := choose_drawing(source)) is None:
    st.stop()
base, prompts = drawing.base, drawing.prompts
chosen: dict[str, str] = {}
a, b = st.columns(2)
text = "ΔW is multiplied by this. 0 is the base model."
strength = b.slider("Strength of the LoRA", 0.0, 2.0, 1.0, 0.05, key=key("strength"), bind="query-params", help=text)
if ranking is not None:
    ids, count = list(ranking.scores.index), len(ranking.scores)
    text, middle = "1 is the highest.", 1 + count // 2
    place = a.slider("Walk along the ranking", 1, count, middle, key=key("place"), bind="query-params", help=text)
    measured = ranking.table["measured"] if ranking.predicted else None
    figure(
        plots.ranking(ranking.scores, measured, ranking.label, selected(source)),
        "ranking",
        "Scores in order of rank",
        ranking.table.assign(name=[source.names[id] for id in ids]),
        on_select=lambda: marked(source, "ranking"),
        selection_mode=("points", "box", "lasso"),
    )
    show_towers(source, ranking.along(STRIP))
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
for lora in also:
    called = source.names[lora]
    chosen[f"LoRA {called}" if called in (*chosen, BASE) else called] = lora
need(chosen, "Choose a LoRA to draw.")
columns: dict[str, str | None] = {**chosen, BASE: None}
sampling = drawing.sampling.with_strength(strength)
brush = painter(base, str(find_device(drawing.device)))
try:
    files = {id: None if id is None else known_weights_file(source, id) for id in columns.values()}
    missing = [
        id
        for id, file in files.items()
        if (id is not None and file is None) or not all(brush.is_drawn(file, p, sampling) for p in prompts)
    ]
except LoLError as problem:
    st.error(sentence(problem), icon=":material/broken_image:")
    st.stop()
except OSError as problem:
    reason = access().text(str(problem))
    st.error(f"A LoRA file cannot be read any more: {reason}. Press **Look for changes** in the sidebar.")
    st.stop()
busy, job = running(state.drawing), state.drawing
automatic = base == known_base(source) and not (job is not None and (job.error or job.stopping))
pressed = st.button("Draw", type="primary", icon=":material/brush:", disabled=busy or not missing, key=key("draw"))
if missing and not busy and (pressed or automatic):
    state.drawing = work.draw_sheets(brush, source, missing, prompts, sampling=sampling)
    st.rerun()
if job is not None:
    follow(job, "stop")
    if job.stopping and not busy:
        st.caption("Press **Draw** to go on.")

rows: list[list[Image.Image]] = [[] for _ in prompts]
shown: list[str] = []
beside = st.container(horizontal=True)  # two in a row on a phone, where columns would stand one below another
for title, id in columns.items():
    lines = [
        "without any LoRA" if id is None else source.names[id],
        *(ranking.lines(id) if ranking is not None else ()),
    ]
    with beside.container():
        st.markdown(f"**{plain(title)}**")
        st.caption("  \n".join(map(plain, lines)))
        if id in missing:
            st.caption("Not drawn yet.")
            continue
        shown.append("\n".join([title, *lines]))
        for row, prompt, image in zip(rows, prompts, brush.draw(files[id], prompts, sampling), strict=True):
            row.append(image)
            larger = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if image.width < SIDE else image
            st.image(larger, caption=plain(prompt), alt=f"{title}: {prompt}", width="stretch")
if len(shown) == len(columns):
    name, grid = f"{source.name}-{ranking.label if ranking else 'images'}.png", contact_sheet(rows, shown, prompts)
    st.download_button("Download the grid", lambda: as_png(grid), name, "image/png", icon=":material/download:")
with st.container(horizontal=True):
    for title, id in chosen.items():
        link_to_lora(source, id, f"{title}: look inside")
walk_points(source, [] if ranking is None else list(ranking.scores.index))
