"""One LoRA: its layers, ranks, norms, spectra and metadata."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.collections.labels import with_labels
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.anatomy import Anatomy, Comparison, layer_map
from lol_core.insight.attribution import contributions
from lol_core.insight.neighbours import nearest
from lol_core.insight.order import in_order
from lol_core.insight.predictions import as_text, opinions
from lol_core.insight.survey import Survey
from lol_core.learning.parts import parts_here
from ui.choice import choose_lora, look_at_link
from ui.figures import figure
from ui.frame import frame, needed, page_link
from ui.jobs import sentence
from ui.keys import key
from ui.metadata import show_metadata, show_notes, show_pairs, show_sidecar
from ui.plain import plain
from ui.points import walk_points
from ui.previews import preview, show_previews
from ui.saving import show_saving
from ui.selection import select_button
from ui.state import known_base, load_lora, loaded_checkpoints, surveys_of
from ui.tables import download, numbers, show

MOST = 12  # modules whose singular values are drawn
HEIGHT, ROW = 420, 35  # pixels of a table at most, and of its row
PICTURE = 128  # pixels that its preview is high
source = frame("LoRA", loras=True)
chosen = needed(choose_lora(source, source.ids, "lora", "LoRA"), "Choose a LoRA.")
entry = source.by_id[chosen]
try:
    lora = in_order(load_lora(source, chosen))
except LoLError as error:
    st.error(sentence(error), icon=":material/broken_image:")
    st.stop()


@st.cache_resource(max_entries=64, show_spinner="Computing spectra …")
def anatomy_of(content: str, _lora: LoRA) -> Anatomy:
    return Anatomy.of(_lora)


@st.cache_resource(max_entries=32, show_spinner="Comparing …")
def compared(content: str, other: str, _first: LoRA, _second: LoRA) -> Comparison:
    return Comparison.of(_first, _second)


@st.cache_data(max_entries=32, show_spinner="Looking for neighbours …")
def nearest_to(fingerprint: str, n_read: int, id: str, _source: Source, _surveys: dict[str, Survey]) -> pd.DataFrame:
    return nearest(_source, _surveys, id)


anatomy, models = anatomy_of(entry.content, lora), loaded_checkpoints(source)
models = {title: model for title, model in models.items() if not model.spec.misfits(entry)}
facts = {"Dialect": entry.dialect, "Modules": len(lora.layers), "Rank": ", ".join(map(str, lora.ranks))}
if picture := preview(source, chosen):
    width = round(picture.width * PICTURE / picture.height)
    st.image(picture, width=width, alt=f"Preview of {source.names[chosen]}")
with st.container(horizontal=True, gap="medium"):
    for label, fact in (facts | {"Parameters": f"{lora.parameters:,}", "Stored as": ", ".join(lora.dtypes)}).items():
        st.metric(label, fact)
shapes = f"as the shapes suggest: {entry.suggested_base or '*nothing known*'}"
st.markdown(f"**Base model** as the file claims: {plain(entry.base_model or '') or '*nothing*'} · {shapes}")
if known_base(source):
    page_link("pages/Images.py", "What it draws", ":material/image:", also=chosen)
show_notes(lora.notes)
show_sidecar(source, chosen)


def show_layers() -> None:
    """The base model coloured by a number of each module, and the norms and spectra of all."""
    st.subheader("The layers of the base model")
    colourings = anatomy.colourings
    contributing = {f"contribution to {title}": model for title, model in models.items()}
    look_at_link("coloured_by", "colour", [*colourings, *contributing])
    colouring = st.selectbox("Coloured by", [*colourings, *contributing], key=key("coloured_by"), bind="query-params")
    if colouring in contributing:
        model = contributing[colouring]
        outputs = list(model.task.columns)
        output = st.selectbox("Output", outputs, key=key("output")) if len(outputs) > 1 else outputs[0]
        values, unit = contributions(model, lora, outputs.index(output)), f"∂ {output} / ∂ scale"
    else:
        values, unit = pd.Series(colourings[colouring], index=lora.names), colouring
    chart = plots.base_map(layer_map(values), unit, colouring in contributing)
    figure(
        chart,
        "base_map",
        f"Map of the base model's modules coloured by {unit}",
        values.rename(unit).rename_axis("module").to_frame(),
    )
    strongest = values.loc[values.abs().nlargest(3).index]
    st.caption("Most of all: " + ", ".join(f"`{name}` ({value:.3g})" for name, value in strongest.items()) + ".")
    left, right = st.columns(2)
    with left:
        st.subheader("Size of the update by module")
        table = pd.DataFrame({"module": lora.names, "‖ΔW‖": anatomy.norms})
        chart = plots.module_norms(lora.names, list(anatomy.norms))
        figure(chart, "norms", "Frobenius norm of each module's update", table)
    with right:
        st.subheader("Singular values")
        spectra = anatomy.largest(MOST)
        chart = plots.spectra(list(spectra), list(spectra.values()))
        drawn = {name: pd.Series(sigma, range(1, len(sigma) + 1)) for name, sigma in spectra.items()}
        table = pd.concat(drawn, names=["module", "index"]).rename("singular value").reset_index()
        figure(chart, "spectra", "Singular values of each module's update", table)
        if len(lora.layers) > MOST:
            st.caption(f"The {MOST} modules with the largest ‖ΔW‖ of {len(lora.layers)}.")


if anatomy.norms.any():
    show_layers()
else:
    st.warning("ΔW is zero in every module: this LoRA was never trained.", icon=":material/block:")
st.subheader("Layers")
layers = anatomy.table()
show(layers, "layers", height=min(HEIGHT, ROW * (len(layers) + 1) + 3))
download(layers, "layers")

st.subheader("Nearest in weight space")
surveys = surveys_of(source)
if chosen not in surveys or len(surveys) < min(len(source), 2):
    st.info("The weights of this collection have not been read yet.", icon=":material/arrow_forward:")
    page_link("pages/Zoo.py", "Read them on the page Zoo", ":material/table_rows:")
elif (near := nearest_to(source.fingerprint, len(surveys), chosen, source, surveys)).empty:
    st.caption("It is zero, or no other LoRA that has been read adapts a module of it.")
else:
    table = near.assign(name=near.index.map(source.names.__getitem__))[["name", *near.columns]]
    table = with_labels(table, source.labels, after=table.columns[-1])
    show(table, "near", column_config=numbers("%.4g", ("distance", "cosine")))
    show_previews(source, [chosen, *near.index])
    rest = f" {len(surveys):,} of {len(source):,} have been read." if len(surveys) < len(source) else ""
    st.caption(f"Distance: ‖ΔW − ΔW′‖ / ‖ΔW‖ over all modules.{rest}")
    select_button(source, [chosen, *near.index], "Select these", "select_near")

st.subheader("Beside another LoRA")
others = [id for id in source.ids if id != chosen]
if second := choose_lora(source, others, "beside", "Compare with", index=None, placeholder="choose one"):
    try:
        pair = compared(entry.content, source.by_id[second].content, lora, load_lora(source, second))
        if len(pair.table):
            same = "They are the same function." if pair.same else "They are different functions."
            st.markdown(
                f"Over {len(pair.table)} shared modules: cosine of the updates **{pair.cosine:.4f}**, ‖ΔW₁ − ΔW₂‖ /"
                f" ‖ΔW₁‖ = **{pair.distance:.4g}**. {same}"
            )
            chart = plots.module_comparison(pair.table, source.names[chosen], source.names[second])
            figure(chart, "comparison", "Norms and cosines of both, module by module", pair.table)
            show(pair.table, "differences", index=True, height=min(HEIGHT, ROW * (len(pair.table) + 1) + 3))
        else:
            st.info("They share no module of the same name and shape, so there is nothing to compare.")
    except LoLError as error:
        st.error(sentence(error))

if models:
    st.subheader("What models say")
    table = opinions(models, lora)
    truths = [source.labels[name].get(chosen) if name in source.labels else None for name in table["label"]]
    table.insert(3, "true", [as_text(truth) for truth in truths])
    table.insert(4, "part", [parts_here(models[title], source).get(chosen, "new") for title in table["model"]])
    show(table, "opinions")

show_saving(anatomy, entry.content, Path(source.names[chosen]).name)
if labels := source.labels.loc[chosen:chosen].dropna(axis="columns").astype(str).iloc[0].to_dict():
    st.subheader("Labels")
    show_pairs({str(name): value for name, value in labels.items()}, "label")
show_metadata(lora)
walk_points(source)
