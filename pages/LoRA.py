"""One LoRA: its layers, ranks, norms, spectra and metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import torch

from lol_core.collections.zoo import Zoo
from lol_core.core.geometry import distance, effective_rank, inner_product, norm, same_function, spectrum, truncate
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.formats.writing import forms_of, packed
from lol_core.insight import plots
from lol_core.insight.attribution import contributions
from lol_core.insight.survey import SAME, Survey, layer_map, nearest, tag_counts
from lol_core.learning.evaluation import METRIC_TITLES
from lol_core.learning.leaderboard import verdict
from lol_core.learning.parts import parts_here
from ui.choice import choose_lora
from ui.figures import figure
from ui.frame import frame, need, needed, page_link
from ui.keys import key
from ui.points import walk_points
from ui.selection import select
from ui.state import checkpoints, known_base, load_checkpoint, load_lora, preview_of, surveys_of

zoo = frame("LoRA")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
chosen = needed(choose_lora(zoo, zoo.ids, "lora", "LoRA"), "Choose a LoRA.")
entry = zoo.by_id[chosen]
try:
    lora = load_lora(zoo, chosen)
except LoLError as error:
    st.error(str(error), icon=":material/broken_image:")
    st.stop()

with st.container(horizontal=True, gap="large"):
    st.metric("Dialect", entry.dialect)
    st.metric("Modules", len(lora.layers))
    st.metric("Rank", ", ".join(map(str, lora.ranks)))
    st.metric("Parameters", f"{lora.parameters:,}")
    st.metric("Stored as", ", ".join(lora.dtypes))
st.markdown(
    f"**Base model** as the file claims: {entry.base_model or '*nothing*'} · as the shapes suggest:"
    f" {entry.suggested_base or '*nothing known*'}"
)
if known_base(zoo):
    page_link("pages/Images.py", "What it draws", ":material/image:", also=chosen)
for note in lora.notes:
    st.caption(f":material/info: {note}")


@st.cache_data(max_entries=64, show_spinner="Computing spectra …")
def spectra_of(digest: str, _lora: LoRA) -> dict[str, list[float]]:
    return {layer.name: spectrum(layer).tolist() for layer in _lora.layers}


@st.cache_data(max_entries=2, show_spinner="Writing …")
def written(digest: str, rank: int, form: str, width: str, name: str, _lora: LoRA) -> tuple[str, bytes]:
    return packed(_lora, name, form, getattr(torch, width))


@st.cache_resource(max_entries=4, show_spinner="Resizing …")
def resized(digest: str, rank: int, _lora: LoRA) -> tuple[LoRA, list[float]]:
    """Modules of larger rank cut to it, with their relative errors; the others as they are."""
    pairs = [truncate(layer, rank) if layer.rank > rank else (layer, 0.0) for layer in _lora.layers]
    return replace(_lora, layers=tuple(layer for layer, _ in pairs)), [error for _, error in pairs]


@st.cache_data(max_entries=32, show_spinner="Comparing …")
def compared(digest: str, other: str, _first: LoRA, _second: LoRA) -> tuple[pd.DataFrame, bool]:
    """Module by module, of those that both adapt in the same shape; and whether they are the same function."""
    rows = {}
    for layer in _first.layers:
        if layer.name in _second.names:
            try:
                product, gap = inner_product(layer, _second[layer.name]), distance(layer, _second[layer.name])
            except LoLError:
                continue
            rows[layer.name] = (norm(layer), norm(_second[layer.name]), product, gap)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["‖ΔW₁‖", "‖ΔW₂‖", "⟨ΔW₁, ΔW₂⟩", "‖ΔW₁ − ΔW₂‖"])
    table["cosine"] = table["⟨ΔW₁, ΔW₂⟩"] / (table["‖ΔW₁‖"] * table["‖ΔW₂‖"]).clip(lower=1e-30)
    return table, same_function(_first, _second, SAME)


@st.cache_data(max_entries=32, show_spinner="Looking for neighbours …")
def nearest_to(fingerprint: str, n_read: int, id: str, _zoo: Zoo, _known: dict[str, Survey]) -> pd.DataFrame:
    return nearest(_zoo, _known, id)


spectra = spectra_of(entry.digest, lora)
sigmas = [pd.Series(spectra[layer.name]).to_numpy() for layer in lora.layers]
norms = [float((sigma**2).sum() ** 0.5) for sigma in sigmas]
effective = [effective_rank(torch.tensor(spectra[layer.name])) for layer in lora.layers]
COLOURINGS: dict[str, list[float]] = {
    "‖ΔW‖": norms,
    "largest singular value": [float(sigma.max(initial=0.0)) for sigma in sigmas],
    "energy of the largest singular value": [
        float(sigma.max(initial=0.0) ** 2 / max((sigma**2).sum(), 1e-30)) for sigma in sigmas
    ],
    "effective rank": effective,
}
models = {
    title: folder for title, folder in checkpoints(zoo).items() if not load_checkpoint(folder).spec.misfits(entry)
}
if not any(norms):
    st.warning(
        "ΔW is zero in every module: this LoRA was never trained. It is the base model.", icon=":material/block:"
    )
else:
    st.subheader("The layers of the base model")
    asked = [f"contribution to {title}" for title in models]
    colouring = (
        st.selectbox("Coloured by", [*COLOURINGS, *asked], key=key("coloured_by"), bind="query-params") or "‖ΔW‖"
    )
    if colouring in COLOURINGS:
        values, unit, signed = pd.Series(COLOURINGS[colouring], index=lora.names), colouring, False
    else:
        checkpoint = load_checkpoint(models[colouring.removeprefix("contribution to ")])
        outputs = list(checkpoint.task.columns)
        output = st.selectbox("Output", outputs, key=key("asked_output")) if len(outputs) > 1 else outputs[0]
        values, unit, signed = contributions(checkpoint, lora, outputs.index(output)), f"∂ {output} / ∂ scale", True
    table = values.rename(unit).to_frame()
    figure(
        plots.base_map(layer_map(values), unit, signed),
        "base_map",
        f"Map of the base model's modules coloured by {unit}",
        table,
    )
    strongest = list(values.abs().sort_values(ascending=False).index[:3])
    st.caption("Most of all: " + ", ".join(f"`{name}` ({values[name]:.3g})" for name in strongest) + ".")
    left, right = st.columns(2)
    with left:
        st.subheader("Size of the update by module")
        figure(
            plots.module_norms(lora.names, norms),
            "norms",
            "Frobenius norm of each module's update",
            pd.DataFrame({"module": lora.names, "‖ΔW‖": norms}),
        )
    with right:
        st.subheader("Singular values")
        largest_first = sorted(range(len(norms)), key=lambda i: -norms[i])[:12]
        chart = plots.spectra([lora.names[i] for i in largest_first], [sigmas[i] for i in largest_first])
        figure(chart, "spectra", "Singular values of each module's update")
        if len(norms) > len(largest_first):
            st.caption(f"The {len(largest_first)} modules with the largest ‖ΔW‖ of {len(norms)}.")

st.subheader("Layers")
layers = pd.DataFrame(
    [
        {
            "module": layer.name,
            "kind": layer.kind + (" + DoRA" if layer.magnitude is not None else ""),
            "n (out)": layer.n,
            "m (in)": layer.m,
            "rank": layer.rank,
            "alpha": layer.alpha,
            "scale": layer.scale,
            "‖ΔW‖": norms[i],
            "effective rank": effective[i],
            "largest σ": sigmas[i].max(initial=0.0),
        }
        for i, layer in enumerate(lora.layers)
    ]
)
st.dataframe(layers, hide_index=True, height=min(420, 38 + 35 * len(layers)))
st.download_button("Download as CSV", layers.to_csv(index=False), "layers.csv", "text/csv", icon=":material/download:")

st.subheader("Nearest in weight space")
known = surveys_of(zoo)
if chosen not in known or len(known) < min(len(zoo), 2):
    st.info("The weights of this collection have not been read yet.", icon=":material/arrow_forward:")
    page_link("pages/Zoo.py", "Read them on the page Zoo", ":material/table_rows:")
else:
    near = nearest_to(zoo.fingerprint, len(known), chosen, zoo, known)
    if near.empty:
        st.caption("It is zero, or no other LoRA has been read.")
    else:
        shown = near.assign(name=[zoo.names[id] for id in near.index])[["name", "distance", "cosine"]].join(zoo.labels)
        numbers = {name: st.column_config.NumberColumn(format="%.4g") for name in ("distance", "cosine")}
        st.dataframe(shown, hide_index=True, key=key("near"), column_config=numbers)
        if pictures := [(id, path) for id in [chosen, *near.index] if (path := preview_of(zoo, id))]:
            with st.container(horizontal=True):
                for id, path in pictures:
                    st.image(str(path), width=180, caption=zoo.names[id])
        st.caption(
            "Distance: ‖ΔW − ΔW′‖ / ‖ΔW‖ over all modules."
            + (f" {len(known):,} of {len(zoo):,} have been read." if len(known) < len(zoo) else "")
        )
        st.button(
            "Select these",
            icon=":material/select_all:",
            on_click=select,
            args=(zoo, [chosen, *near.index]),
            key=key("select_near"),
        )

st.subheader("Beside another LoRA")
others = [id for id in zoo.ids if id != chosen]
second = choose_lora(zoo, others, "beside", "Compare with", index=None, placeholder="choose one")
if second:
    try:
        differences, same = compared(entry.digest, zoo.by_id[second].digest, lora, load_lora(zoo, second))
    except LoLError as error:
        st.error(str(error))
    else:
        if differences.empty:
            st.info("They share no module of the same name and shape, so there is nothing to compare.")
        else:
            gap = float(np.sqrt((differences["‖ΔW₁ − ΔW₂‖"] ** 2).sum()))
            size = float(np.sqrt((differences["‖ΔW₁‖"] ** 2).sum()))
            cosine = float(
                differences["⟨ΔW₁, ΔW₂⟩"].sum() / max(size * np.sqrt((differences["‖ΔW₂‖"] ** 2).sum()), 1e-30)
            )
            st.markdown(
                f"Over {len(differences)} shared modules: cosine of the updates **{cosine:.4f}**, ‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖ ="
                f" **{gap / max(size, 1e-30):.4g}**. "
                + ("They are the same function." if same else "They are different functions.")
            )
            chart = plots.module_comparison(differences, zoo.names[chosen], zoo.names[second])
            figure(chart, "comparison", "Norms and cosines of both, module by module", differences)
            st.dataframe(differences, key=key("differences"), height=min(320, 38 + 35 * len(differences)))

if models:
    st.subheader("What models say")
    rows = []
    for title, folder in models.items():
        checkpoint = load_checkpoint(folder)
        try:
            predicted = checkpoint.task.frame(checkpoint.predict([lora]), [chosen])
        except LoLError as error:
            st.caption(f"{title}: {error}")
            continue
        metric = checkpoint.task.headline
        part = parts_here(checkpoint, zoo).get(chosen, "new")
        for name in checkpoint.task.targets:
            true = zoo.labels[name].get(chosen) if name in zoo.labels else None
            about = {"model": title, "label": name, "predicted": predicted[name].iloc[0], "true": true, "part": part}
            rows.append(
                about
                | {
                    f"test {METRIC_TITLES[metric]}": checkpoint.metrics["test"][metric],
                    "verdict": verdict(checkpoint).sentence,
                }
            )
    said = pd.DataFrame(rows)
    for name in ("predicted", "true"):  # numbers and classes in one column
        said[name] = [
            f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value) for value in said[name]
        ]
    st.dataframe(said, hide_index=True, key=key("said"))

st.subheader("Resize and save")
forms = forms_of(lora)
if not forms:
    st.caption(
        "Its update is no product of two factors in every module (LoKr), so it cannot be written in another form."
    )
else:
    a, b, c = st.columns([3, 2, 2], vertical_alignment="bottom")
    largest = rank = max(lora.ranks)
    if largest > 1:
        rank = a.slider(
            "Rank",
            1,
            largest,
            largest,
            key=key("resize_rank"),
            help="Each module's nearest update of this rank, from its singular values.",
        )
    form = b.selectbox("Form", forms, key=key("resize_form"), help="The names and files that other programs expect.")
    width = c.selectbox("Numbers", ["float16", "bfloat16", "float32"], key=key("resize_dtype"))
    cut, errors = resized(entry.digest, rank, lora)
    lost = float((np.square(errors) * np.square(norms)).sum() ** 0.5 / max(np.linalg.norm(norms), 1e-30))
    worst = int(np.argmax(errors))
    st.markdown(
        f"‖ΔW − ΔW′‖ / ‖ΔW‖ = **{lost:.3g}** over all modules"
        + (f"; at most {errors[worst]:.3g}, in `{lora.names[worst]}`" if lost > 1e-6 else "")
        + f". {cut.parameters:,} of {lora.parameters:,} parameters."
    )
    try:
        file_name, content = written(entry.digest, rank, form, width, f"{Path(zoo.names[chosen]).name}-rank{rank}", cut)
    except LoLError as error:
        st.error(str(error))
    else:
        st.download_button(
            f"Download ({len(content) / 1000:,.0f} kB)",
            content,
            file_name,
            icon=":material/download:",
            key=key("download_lora"),
        )

labels = zoo.labels.loc[chosen:chosen].dropna(axis="columns").astype(str).iloc[0].to_dict()
if labels:
    st.subheader("Labels")
    rows = [{"label": column, "value": str(value)} for column, value in labels.items()]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=min(280, 38 + 35 * len(rows)))
st.subheader("Metadata")
if len(tags := tag_counts(lora.metadata)):
    few = tags.head(30)
    figure(
        plots.frequencies(few, "pictures with the tag"),
        "tags",
        "How often each tag occurs in the captions it was trained on",
        tags.rename_axis("tag").to_frame(),
    )
    if len(tags) > len(few):
        st.caption(f"The {len(few)} most frequent of {len(tags):,} tags.")
metadata = {key: value for key, value in lora.metadata.items() if value not in (None, "", [], {}, False)}
if metadata:
    rows = [
        {"key": key, "value": value if isinstance(value, str) else json.dumps(value, default=str)}
        for key, value in metadata.items()
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=min(420, 38 + 35 * len(rows)))
    with st.expander("Everything, as the file has it", key=key("everything")):
        st.json(dict(lora.metadata), expanded=1)
else:
    st.caption("The file says nothing about itself.")
if lora.extras:
    with st.expander(f"{len(lora.extras)} tensors in the file are no part of a low-rank pair", key=key("extras")):
        st.dataframe(pd.DataFrame({"tensor": lora.extras}), hide_index=True)

walk_points(zoo)
