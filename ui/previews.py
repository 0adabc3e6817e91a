"""Pictures of what LoRAs draw, as they came with a collection: a strip of them in its `previews` folder, or one that a
sidecar names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st
from PIL import Image

from lol_core.collections.source import Source
from ui.frame import page_link
from ui.tables import paged

GALLERY_PAGE = 48
WIDTH = 180
PROBED = 20


def tiles(path: Path) -> list[Image.Image]:
    """The square pictures of a strip, from left to right; of a single picture its upper left square."""
    strip = Image.open(path).convert("RGB")
    side = min(strip.size)
    count = strip.width // side if strip.width % side == 0 else 1
    return [strip.crop((x, 0, x + side, side)) for x in range(0, count * side, side)]


@st.cache_data(max_entries=8, show_spinner=False)
def _gallery(fingerprint: str, _source: Source) -> bool:
    return any(_source.preview(id) for id in _source.ids[:PROBED])


def has_gallery(source: Source) -> bool:
    """Whether the first LoRAs of a collection come with pictures."""
    return _gallery(source.fingerprint, source)


def show_previews(source: Source, ids: Sequence[str], *, linked: bool = False) -> None:
    """The previews of some LoRAs beside each other, with their names where they are linked; nothing where there are
    none.
    """
    pictures = [(id, path) for id in ids if (path := source.preview(id))]
    if not pictures:
        return
    with st.container(horizontal=True):
        for id, path in pictures:
            with st.container(width=WIDTH + 10):
                st.image(str(path), width=WIDTH, caption=None if linked else source.names[id])
                if linked:
                    link_to_lora(source, id)


def link_to_lora(source: Source, id: str, label: str = "") -> None:
    """A link to the page of a LoRA, called by the last part of its name."""
    page_link("pages/LoRA.py", label or source.names[id].rsplit("/", 1)[-1], ":material/layers:", lora=id)


def show_towers(source: Source, captioned: Mapping[str, str]) -> None:
    """Previews as columns of their pictures, where every one of these LoRAs has some. captioned: caption → id."""
    paths = [source.preview(id) for id in captioned.values()]
    if not all(paths):
        return
    st.caption("From the highest to the lowest, previews that came with the collection:")
    with st.container(horizontal=True):
        for path, caption in zip(paths, captioned, strict=True):
            pictures = tiles(path or Path())
            side = pictures[0].height
            tower = Image.new("RGB", (side, side * len(pictures)))
            for row, picture in enumerate(pictures):
                tower.paste(picture, (0, row * side))
            st.image(tower, caption=caption, width=72)


def gallery(source: Source, ids: Sequence[str]) -> None:
    """Previews, a page at a time, each linked to its LoRA."""
    page = paged(len(ids), GALLERY_PAGE, "gallery_page")
    with st.container(horizontal=True):
        for id in ids[page]:
            with st.container(width=132, border=True):
                if (path := source.preview(id)) is None:
                    st.caption("No preview")
                else:
                    picture = tiles(path)[0].resize((128, 128), Image.Resampling.BICUBIC)
                    st.image(picture, width=112, alt=f"Preview of {id}")
                link_to_lora(source, id)
