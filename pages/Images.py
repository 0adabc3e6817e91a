"""What the LoRAs draw: those with the highest and the lowest score side by side, beside the base model, with the
same prompts and seeds.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from lol_core.collections.zoo import Zoo
from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.generation import Sampling, contact_sheet
from lol_core.learning.devices import devices, find_device
from lol_core.learning.parts import parts_here
from lol_core.learning.tasks import Regression
from ui.choice import choose_loras
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.jobs import DrawingJob, Sheet
from ui.keys import key
from ui.points import walk_points
from ui.progress import show
from ui.selection import marked, selected, visible
from ui.state import checkpoints, known_base, load_checkpoint, painter, preview_of, session

PROMPTS = ("a person on the beach", "a dog in a park", "a church on a blue background")
STRIP = 9
MAX_ALSO = 3
zoo = frame("Images")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
state = session()


def rankings(zoo: Zoo) -> dict[str, tuple[str, Path | None]]:
    """What LoRAs can be ranked by: title → (label, checkpoint or None for the measured label itself). CLIP scores
    first, models before labels.
    """
    found: dict[str, tuple[str, Path | None]] = {}
    for title, folder in checkpoints(zoo).items():
        try:
            model = load_checkpoint(folder)
        except LoLError:
            continue
        if isinstance(model.task, Regression):
            found |= {f"{label} predicted by {title}": (label, folder) for label in model.task.targets}
    numbers = [
        c for c in zoo.labels.columns if pd.api.types.is_numeric_dtype(zoo.labels[c]) and zoo.labels[c].nunique() > 2
    ]
    found |= {f"{label}, measured": (label, None) for label in numbers}
    return dict(sorted(found.items(), key=lambda item: item[1][0] != "clip_score"))


@st.cache_data(max_entries=8, show_spinner="Predicting every LoRA …")
def predicted(folder: str, modified: float, label: str, fingerprint: str, _zoo: Zoo) -> tuple[pd.Series, list[str]]:
    """Predictions of a label, and the test LoRAs; where none of these is here, those the model has not seen."""
    model = load_checkpoint(Path(folder))
    table, _ = model.predict_zoo(_zoo)
    parts = parts_here(model, _zoo)
    test = [id for id in table.index if parts.get(id) == "test"]
    return table[label], test or [id for id in table.index if id not in parts]


@dataclass(frozen=True)
class Ranking:
    """LoRAs by a score, the highest first. label: what is scored, "" when nothing can be; measured: the true
    values, where the scores are predictions.
    """

    label: str
    scores: pd.Series
    measured: pd.Series
    is_predicted: bool


def choose_ranking() -> Ranking:
    """What the LoRAs are ranked by, as chosen on the page; empty, with what to do about it, where fewer than two
    have a score.
    """
    ranks = rankings(zoo)
    none = Ranking("", pd.Series(dtype=float), pd.Series(dtype=float), False)
    if not ranks:
        st.info(
            "To rank LoRAs there must be a label with numbers, or a model that predicts one. Any can be drawn without.",
            icon=":material/arrow_forward:",
        )
        return none
    if not any(folder for _, folder in ranks.values()):
        st.info(
            "No model that predicts a number has been trained here yet, so the ranking below is by measured labels.",
            icon=":material/arrow_forward:",
        )
        label = "clip_score" if "clip_score" in zoo.labels else next(iter(ranks.values()))[0]
        page_link("pages/Train.py", f"Train GL-net to predict {label}", ":material/model_training:", targets=label)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    title = left.selectbox("Rank by", list(ranks), key=key("rank_by"), bind="query-params")
    need(title, "Choose what to rank by.")
    label, folder = ranks[title]
    scores = measured = zoo.labels[label].dropna() if label in zoo.labels else pd.Series(dtype=float)
    if folder is not None:
        scores, held_out = predicted(
            str(folder), (folder / "checkpoint.json").stat().st_mtime, label, zoo.fingerprint, zoo
        )
        which = right.segmented_control(
            "Of",
            ["test", "all"],
            default="test",
            key=key("which"),
            help="test: LoRAs the model did not see in training.",
        )
        scores = scores.loc[held_out] if which != "all" and held_out else scores
    among = set(visible(zoo))
    if len(among) < len(zoo):
        scores = scores[[id in among for id in scores.index]]
        st.caption(f"Among the {len(among):,} selected, of which {len(scores):,} have a score here.")
    if len(scores) < 2:
        st.info("Fewer than two LoRAs have a score here, so there is no ranking.", icon=":material/arrow_forward:")
        return none
    return Ranking(label, scores.sort_values(ascending=False), measured, folder is not None)


def show_strip(ids: pd.Index) -> None:
    """Previews that came with the collection, from the highest to the lowest."""
    along = np.unique(np.linspace(0, len(ids) - 1, STRIP).round().astype(int))
    if not all(preview_of(zoo, ids[i]) for i in along):
        return
    st.caption("From the highest to the lowest, previews that came with the collection:")
    with st.container(horizontal=True):
        for i in along:
            strip = Image.open(preview_of(zoo, ids[i]) or "")
            tiles = [strip.crop((x, 0, x + strip.height, strip.height)) for x in range(0, strip.width, strip.height)]
            tower = Image.new("RGB", (strip.height, strip.height * len(tiles)))
            for y, tile in enumerate(tiles):
                tower.paste(tile, (0, y * strip.height))
            st.image(tower, caption=f"#{i + 1}", width=72)


ranking = choose_ranking()
settings_path = zoo.folder / "recipe.json"
recipe = json.loads(settings_path.read_text()) if settings_path.is_file() else {}
with st.expander(
    "Base model, prompts and sampling", icon=":material/tune:", key=key("image_settings"), expanded=not known_base(zoo)
):
    a, b = st.columns([3, 1])
    base = a.text_input(
        "Base model",
        known_base(zoo),
        key=key("base"),
        bind="query-params",
        placeholder="a diffusers folder, or a hub id",
        help="The text-to-image model these LoRAs were trained on.",
    )
    device = b.selectbox("Device", ["auto", *devices()], key=key("image_device"))
    prompts_text = st.text_area(
        "Prompts, one a line",
        "\n".join(recipe.get("preview_prompts") or PROMPTS),
        key=key("prompts"),
        bind="query-params",
        height=110,
    )
    a, b, c = st.columns(3)
    seed = int(a.number_input("Seed", 0, 2**31 - 1, int(recipe.get("score_seed", 42)), key=key("image_seed")))
    steps = int(
        b.number_input("Sampling steps", 1, 200, int(recipe.get("sampling_steps", 20)), key=key("sampling_steps"))
    )
    guidance = float(
        c.number_input(
            "Guidance",
            1.0,
            30.0,
            float(recipe.get("guidance", 7.5)),
            key=key("guidance"),
            help="1: none. Stable Diffusion: about 7.5.",
        )
    )
need(
    base,
    "To draw images, name the base model these LoRAs were trained on, above: a folder in diffusers form on this"
    " computer, or a hub id such as `CompVis/stable-diffusion-v1-4`. The files say:"
    f" {', '.join(sorted({str(e.base_model or e.suggested_base or 'nothing') for e in zoo.entries}))}.",
)
prompts = tuple(line.strip() for line in prompts_text.splitlines() if line.strip())
need(prompts, "Write at least one prompt.")


def take_selection() -> None:
    marked(zoo, "ranking")


chosen: dict[str, str] = {}
a, b = st.columns(2)
strength = b.slider(
    "Strength of the LoRA",
    0.0,
    2.0,
    1.0,
    0.05,
    key=key("strength"),
    bind="query-params",
    help="ΔW is multiplied by this. 0 is the base model.",
)
if count := len(scores := ranking.scores):
    place = a.slider(
        "Walk along the ranking",
        1,
        count,
        1 + count // 2,
        key=key("place"),
        bind="query-params",
        help="1 is the highest.",
    )
    measured = ranking.measured.reindex(scores.index)
    table = pd.DataFrame({"name": [zoo.names[id] for id in scores.index], "score": scores, "measured": measured})
    chart = plots.ranking(scores, measured if ranking.is_predicted else None, ranking.label, selected(zoo))
    figure(
        chart,
        "ranking",
        "Scores in order of rank",
        table,
        on_select=take_selection,
        selection_mode=("points", "box", "lasso"),
    )
    show_strip(scores.index)
    chosen = {"Highest": scores.index[0], f"Rank {place}": scores.index[place - 1], "Lowest": scores.index[-1]}
also = choose_loras(
    zoo,
    zoo.ids,
    "also",
    "Also draw" if chosen else "LoRAs to draw",
    place=None if chosen else a,
    default=[] if chosen else zoo.ids[:1],
    max_selections=MAX_ALSO,
    placeholder="any LoRA of the collection",
)
chosen |= {zoo.names[id]: id for id in also}
need(chosen, "Choose a LoRA to draw.")
columns: dict[str, str | None] = {**chosen, "Base model": None}
sampling = Sampling(seed=seed, steps=steps, guidance=guidance, strength=strength)
brush = painter(base, str(find_device(device)))


def file_of(id: str | None) -> Path | None:
    return None if id is None else zoo.folder / id


try:
    missing = [
        id
        for id in dict.fromkeys(columns.values())
        if not all(brush.is_drawn(file_of(id), p, sampling) for p in prompts)
    ]
except OSError as problem:
    st.error(f"A LoRA file cannot be read any more: {problem}. Press **Look for changes** in the sidebar.")
    st.stop()
job = state.drawing
busy = job is not None and job.running
draw, stop, _ = st.columns([1, 1, 4])
automatic = base == known_base(zoo) and not (job is not None and (job.error or job.stopping))
pressed = draw.button("Draw", type="primary", icon=":material/brush:", disabled=busy or not missing, width="stretch")
if missing and not busy and (pressed or automatic):
    state.drawing = job = DrawingJob(lambda: brush, [Sheet(file_of(id), prompts) for id in missing], sampling)
    job.start()
    st.rerun()
if stop.button("Stop", icon=":material/stop:", disabled=not busy, width="stretch") and job is not None:
    job.stop()


@st.fragment(run_every=0.4 if busy else None)
def watch() -> None:
    if job is None:
        return
    if job.running:
        show(job)
    elif busy:
        st.rerun(scope="app")
    if job.error:
        st.error(job.error)
    elif job.stopping and not job.running:
        st.caption("Stopped. Press **Draw** to go on.")


watch()


def heading(title: str, id: str | None) -> str:
    """Its name and scores, always in as many lines, so that the images of all columns stand side by side."""

    def number(of: pd.Series) -> str:
        return f"{of[id]:.4g}" if id is not None and id in of.index else "–"

    lines = ["without any LoRA" if id is None else zoo.names[id]]
    if ranking.is_predicted:
        lines.append(f"predicted {number(ranking.scores)}")
    if len(ranking.measured):
        lines.append(f"measured {number(ranking.measured)}")
    return "\n".join(lines)


rows: list[list[Image.Image]] = [[] for _ in prompts]
shown: list[str] = []
for place_in_page, (name, id) in zip(st.columns(len(columns)), columns.items(), strict=True):
    with place_in_page:
        st.markdown(f"**{name}**")
        st.caption(heading(name, id).replace("\n", "  \n"))
        if id in missing:
            st.caption("Not drawn yet.")
            continue
        images = brush.draw(file_of(id), prompts, sampling)
        shown.append(f"{name}\n{heading(name, id)}")
        for row, prompt, image in zip(rows, prompts, images, strict=True):
            row.append(image)
            larger = image.resize((256, 256), Image.Resampling.BICUBIC) if image.width < 256 else image
            st.image(larger, caption=prompt, width="stretch")
if shown and len(shown) == len(columns):
    buffer = io.BytesIO()
    contact_sheet(rows, shown, prompts).save(buffer, "PNG")
    st.download_button(
        "Download the grid",
        buffer.getvalue(),
        f"{zoo.name}-{ranking.label or 'images'}.png",
        "image/png",
        icon=":material/download:",
    )
with st.container(horizontal=True):
    for name, id in chosen.items():
        page_link("pages/LoRA.py", f"{name}: look inside", ":material/layers:", lora=id)
walk_points(zoo, list(ranking.scores.index))
