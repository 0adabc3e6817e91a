"""One LoRA: its layers, ranks, norms, spectra and metadata."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st
import torch

from lol_core import plots
from lol_core.errors import LoLError
from lol_core.geometry import effective_rank, spectrum
from lol_core.lora import LoRA
from ui.frame import frame, need
from ui.state import load_lora

zoo = frame("LoRA")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
chosen = st.selectbox("LoRA", zoo.ids, format_func=lambda id: zoo.names[id], key="lora", bind="query-params")
need(chosen, "Choose a LoRA.")
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
st.markdown(f"**Base model** as the file claims: {entry.base_model or '*nothing*'} · as the shapes suggest: {entry.suggested_base or '*nothing known*'}")
for note in lora.notes:
    st.caption(f":material/info: {note}")


@st.cache_data(max_entries=64, show_spinner="Computing spectra …")
def spectra_of(digest: str, _lora: LoRA) -> dict[str, list[float]]:
    return {layer.name: spectrum(layer).tolist() for layer in _lora.layers}


spectra = spectra_of(entry.digest, lora)
sigmas = [pd.Series(spectra[layer.name]).to_numpy() for layer in lora.layers]
norms = [float((sigma**2).sum() ** 0.5) for sigma in sigmas]
left, right = st.columns(2)
left.subheader("Size of the update by module")
left.plotly_chart(plots.module_norms(lora.names, norms), key="norms", alt="Frobenius norm of each module's update")
right.subheader("Singular values")
strongest = sorted(range(len(norms)), key=lambda i: -norms[i])[:12]
right.plotly_chart(
    plots.spectra([lora.names[i] for i in strongest], [sigmas[i] for i in strongest]), key="spectra", alt="Singular values of each module's update"
)
if len(norms) > len(strongest):
    right.caption(f"The {len(strongest)} modules with the largest ‖ΔW‖ of {len(norms)}.")

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
            "effective rank": effective_rank(torch.tensor(spectra[layer.name])),
            "largest σ": sigmas[i].max(initial=0.0),
        }
        for i, layer in enumerate(lora.layers)
    ]
)
st.dataframe(layers, hide_index=True, height=min(420, 38 + 35 * len(layers)))
st.download_button("Download as CSV", layers.to_csv(index=False), "layers.csv", "text/csv", icon=":material/download:")

labels = zoo.labels.loc[chosen:chosen].dropna(axis="columns").astype(str).iloc[0].to_dict()
if labels:
    st.subheader("Labels")
    rows = [{"label": column, "value": str(value)} for column, value in labels.items()]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=min(280, 38 + 35 * len(rows)))
st.subheader("Metadata")
said = {key: value for key, value in lora.metadata.items() if value not in (None, "", [], {}, False)}
if said:
    rows = [{"key": key, "value": value if isinstance(value, str) else json.dumps(value, default=str)} for key, value in said.items()]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height=min(420, 38 + 35 * len(rows)))
    with st.expander("Everything, as the file has it", key="everything"):
        st.json(dict(lora.metadata), expanded=1)
else:
    st.caption("The file says nothing about itself.")
if lora.extras:
    with st.expander(f"{len(lora.extras)} tensors in the file are no part of a low-rank pair", key="extras"):
        st.dataframe(pd.DataFrame({"tensor": lora.extras}), hide_index=True)
