"""Pictures of what LoRAs draw, as they came with a collection: a strip of them in its `previews` folder, or one that a
sidecar names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st
from PIL import Image

from lol_core.collections.columns import detailed
from lol_core.collections.source import Source
from ui.frame import page_link
from ui.plain import plain
from ui.tables import paged

GALLERY_PAGE = 48
WIDTH = 160
"""Pixels of a strip: two fit beside each other on a phone."""
PROBED = 20
FORMATS = ("PNG", "JPEG", "WEBP")
"""What a stranger's picture may be: readers of others start programs (EPS) or are little tried."""


def preview(source: Source, id: str) -> Image.Image | None:
    """The picture that came with a LoRA, in RGB; None where none came, or what came is no sound PNG, JPEG or WebP."""
    if (path := source.preview(id)) is None:
        return None
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def tiles(strip: Image.Image) -> list[Image.Image]:
    """The square pictures of a strip, from left to right; of a single picture its upper left square."""
    side = min(strip.size)
    count = strip.width // side if strip.width % side == 0 else 1
    return [strip.crop((x, 0, x + side, side)) for x in range(0, count * side, side)]


@st.cache_data(max_entries=8, show_spinner=False)
def _gallery(fingerprint: str, _source: Source) -> bool:
    return any(map(_source.preview_of, detailed(_source, _source.ids[:PROBED])))


def has_gallery(source: Source) -> bool:
    """Whether the first LoRAs of a collection come with pictures."""
    return _gallery(source.fingerprint, source)


def show_previews(source: Source, ids: Sequence[str], *, linked: bool = False) -> None:
    """The previews of some LoRAs beside each other, with their names where they are linked; nothing where there are
    none.
    """
    pictures = [(id, picture) for id in ids if (picture := preview(source, id))]
    if not pictures:
        return
    with st.container(horizontal=True):
        for id, picture in pictures:
            with st.container(width=WIDTH + 10):
                st.image(
                    picture,
                    width=WIDTH,
                    alt=f"Preview of {source.names[id]}",
                    caption=None if linked else plain(source.names[id]),
                )
                if linked:
                    link_to_lora(source, id)


def link_to_lora(source: Source, id: str, label: str = "") -> None:
    """A link to the page of a LoRA, called by the last part of its name."""
    page_link("pages/LoRA.py", plain(label or source.names[id].rsplit("/", 1)[-1]), ":material/layers:", lora=id)


def show_towers(source: Source, captioned: Mapping[str, str]) -> None:
    """Previews as columns of their pictures, where every one of these LoRAs has some. captioned: caption → id."""
    strips = [strip for id in captioned.values() if (strip := preview(source, id))]
    if len(strips) < len(captioned):
        return
    st.caption("From the highest to the lowest, previews that came with the collection:")
    with st.container(horizontal=True):
        for strip, caption in zip(strips, captioned, strict=True):
            pictures = tiles(strip)
            side = pictures[0].height
            tower = Image.new("RGB", (side, side * len(pictures)))
            for row, picture in enumerate(pictures):
                tower.paste(picture, (0, row * side))
            st.image(tower, caption=plain(caption), alt=f"Preview of {caption}", width=72)


def gallery(source: Source, ids: Sequence[str]) -> None:
    """Previews, a page at a time, each linked to its LoRA."""
    page = paged(len(ids), GALLERY_PAGE, "gallery_page")
    with st.container(horizontal=True):
        for id in ids[page]:
            with st.container(width=132, border=True):
                if (strip := preview(source, id)) is None:
                    st.caption("No preview")
                else:
                    picture = tiles(strip)[0].resize((128, 128), Image.Resampling.BICUBIC)
                    st.image(picture, width=112, alt=f"Preview of {id}")
                link_to_lora(source, id)
