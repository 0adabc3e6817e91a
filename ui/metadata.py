"""What a LoRA's file, and the files beside it, say about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.insight import plots
from lol_core.insight.tags import tag_counts
from ui.figures import figure
from ui.keys import key
from ui.plain import plain
from ui.previews import preview
from ui.tables import show

WIDTH = 200
"""Pixels of the picture."""
FEW = 30
"""Tags that are drawn."""


def show_pairs(pairs: Mapping[str, Any], name: str) -> None:
    """A table of two columns."""
    rows = [
        {name: field, "value": value if isinstance(value, str) else json.dumps(value, default=str)}
        for field, value in pairs.items()
    ]
    show(pd.DataFrame(rows), f"{name}_pairs", height=min(420, 38 + 35 * len(rows)))


def show_sidecar(source: Source, id: str) -> None:
    """What the files beside a LoRA claim of it, with their picture; nothing where there are none."""
    if not (sidecar := source.by_id[id].sidecar):
        return
    with st.container(border=True):
        st.caption(f":material/attach_file: Claimed by {plain(', '.join(sidecar.files))}, which lie beside the file.")
        row = st.container(horizontal=True)
        if picture := preview(source, id):
            row.image(picture, alt=f"Preview of {source.names[id]}", width=WIDTH)
        column = row.container()
        claims = {
            "Title": plain(sidecar.title),
            "Trigger words": ", ".join(plain(word) if "`" in word else f"`{word}`" for word in sidecar.trigger_words),
            "Tags": plain(", ".join(sidecar.tags)),
            "Base model": plain(sidecar.base_model or ""),
            "Licence": plain(sidecar.licence or ""),
        }
        column.markdown("  \n".join(f"**{name}** · {value}" for name, value in claims.items() if value))
        if sidecar.notes:
            column.text(sidecar.notes)


def show_notes(notes: Sequence[str], of: str = "") -> None:
    """What is uncertain of a file, and what is left out of it. of: which LoRA, where there are several."""
    for note in notes:
        st.caption(f":material/info: {plain(f'{of}: {note}' if of else note)}")


def show_metadata(lora: LoRA) -> None:
    """The tags it was trained on, everything its header says, and the tensors that are no part of it."""
    st.subheader("Metadata")
    if len(tags := tag_counts(lora.metadata)):
        alt = "How often each tag occurs in the captions it was trained on"
        chart = plots.frequencies(tags.head(FEW), "pictures with the tag")
        figure(chart, "tags", alt, tags.rename_axis("tag").to_frame())
        if len(tags) > FEW:
            st.caption(f"The {FEW} most frequent of {len(tags):,} tags.")
    if metadata := {name: value for name, value in lora.metadata.items() if value not in (None, "", [], {}, False)}:
        show_pairs(metadata, "key")
        with st.expander("Everything, as the file has it", key=key("everything")):
            st.json(dict(lora.metadata), expanded=1)
    else:
        st.caption("The file says nothing about itself.")
    if lora.extras:
        with st.expander(f"{len(lora.extras)} tensors in the file are no part of a low-rank pair", key=key("extras")):
            show(pd.DataFrame({"tensor": lora.extras}), "extra_tensors")
