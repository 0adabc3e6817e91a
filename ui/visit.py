"""The guided visit: a few stops on the sample zoo of faces, each a real result, with what there is to see. Where one
was stands in the URL and is remembered on this computer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import streamlit as st

from lol_core.collections.source import Source
from ui.access import access
from ui.keys import FRAME, key
from ui.state import kept, session

ZOO = "faces"
ATTRIBUTES, SCORE = "GL-net → Eyeglasses, Wearing_Hat … (seed 0)", "GL-net → clip_score (seed 0)"
"""Titles of models that come with it."""


@dataclass(frozen=True)
class Stop:
    """page: where it is; title, brief: how Home calls it; text: what there is to see and do; fields: values of the
    page's widgets, by their names there.
    """

    page: str
    title: str
    brief: str
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)


STOPS = (
    Stop(
        "Zoo",
        "A thousand LoRAs",
        "A collection: files, labels, and what they draw.",
        "Each of these files taught the same small model to draw one person. The pictures came with them, for you: a"
        " LoL model sees only the weights.",
        {"view": "Gallery"},
    ),
    Stop(
        "Predictions",
        "A model that reads weights",
        "Glasses? A hat? Told from U and V alone.",
        "From U and V alone GL-net says whether the person wears eyeglasses or a hat, has a beard or long hair, and,"
        " hardly better than chance, smiles."
        " Each point is a LoRA that it has not seen. The controls see only how large the updates are or what the file"
        " looks like; a sentence says whether GL-net is better than them.",
        {"model": ATTRIBUTES},
    ),
    Stop(
        "Map",
        "What it has learned",
        "The LoRAs as points, near where GL-net finds them alike.",
        "Every point is a LoRA, placed by what GL-net computes from it; the colour says who wears a hat. Click a point"
        " or draw a lasso around some: below stand their pictures, and what tells them apart.",
        {"space": f"Latent of {ATTRIBUTES}", "colour": "Wearing_Hat"},
    ),
    Stop(
        "Images",
        "Highest and lowest",
        "What the LoRAs draw that a model ranks first and last.",
        "A harder question: how well do the drawings fit their prompts (CLIP score)? Highest predicted on the left,"
        " lowest on the right, none of them seen in training. Below, some are drawn anew beside the base model.",
        {"rank_by": f"clip_score predicted by {SCORE}"},
    ),
    Stop(
        "Invariance",
        "The same LoRA, other numbers",
        "Turn R, and see which models notice.",
        "U and V can be written in endlessly many ways with the same product. Press **Draw another R**: U and V change,"
        " ΔW does not. The needles of GL-net and SVD stay. That of MLP + O-Align moves, as it may: it promises to stay"
        " only under rotations and reflections.",
    ),
)


def stop_now() -> int | None:
    """The stop of the visit that is on, from 0; None where there is none on."""
    state = session()
    if st.query_params.get("visit", state.url["visit"]) != state.url["visit"]:
        state.url["visit"] = st.query_params["visit"]
    if state.url["visit"] not in map(str, range(1, len(STOPS) + 1)):
        state.url["visit"] = ""
        st.query_params.pop("visit", None)
        return None
    st.query_params["visit"] = state.url["visit"]
    return int(state.url["visit"]) - 1


def reached() -> int:
    """How many stops have been seen on this computer."""
    try:
        return min(int(json.loads((kept() / "visit.json").read_text())), len(STOPS))
    except (OSError, ValueError, TypeError):
        return 0


def _remember(stops: int) -> None:
    if stops != reached():
        kept().mkdir(parents=True, exist_ok=True)
        (kept() / "visit.json").write_text(json.dumps(stops))


def address(number: int) -> tuple[str, dict[str, str]]:
    """The page of a stop and what stands in its URL."""
    stop = STOPS[number]
    fields = {key(name, stop.page): value for name, value in stop.fields.items()}
    return f"pages/{stop.page}.py", {"collection": access().sample(ZOO) or "", "visit": str(number + 1)} | fields


def go(number: int) -> NoReturn:
    """To a stop of the visit; to Home after the last."""
    if number >= len(STOPS):
        end()
        st.switch_page("app.py", query_params={"collection": session().url["collection"]})
    page, fields = address(number)
    session().url |= {"collection": fields["collection"], "labels": "", "visit": fields["visit"]}
    st.switch_page(page, query_params=fields)


def end() -> None:
    session().url["visit"] = ""
    st.query_params.pop("visit", None)


def guide(page: str, source: Source) -> None:
    """On the page of the present stop what there is to see, and the way on; elsewhere a way back to it."""
    number = stop_now()
    if number is None or access().sample(ZOO) is None:
        return
    stop, last = STOPS[number], number + 1 == len(STOPS)
    if page != stop.page or source.address != access().sample(ZOO):
        if st.sidebar.button(
            f"Go on with the visit ({number + 1} of {len(STOPS)})",
            icon=":material/explore:",
            width="stretch",
            key=key("visit", FRAME),
        ):
            go(number)
        return
    _remember(number + 1)
    with st.container(border=True):
        st.markdown(f":blue-badge[{number + 1} of {len(STOPS)}] **{stop.title}.** {stop.text}")
        with st.container(horizontal=True):
            title = "Finish" if last else f"Next: {STOPS[number + 1].title}"
            if st.button(title, type="primary", icon=":material/arrow_forward:", key=key("visit_next", FRAME)):
                go(number + 1)
            if number and st.button("Back", type="tertiary", key=key("visit_back", FRAME)):
                go(number - 1)
            st.button("Leave the visit", type="tertiary", on_click=end, key=key("visit_end", FRAME))


def door() -> None:
    """On Home: begin the visit, or go on where one was."""
    seen = reached()
    if seen in (0, len(STOPS)):
        title, number = ("The visit once more" if seen else "Begin: two minutes"), 0
    else:
        title, number = f"Go on: {STOPS[seen].title}", seen
    if st.button(title, type="primary", icon=":material/explore:", key=key("visit")):
        go(number)


def overview() -> None:
    """On Home: every stop, those that were seen marked, each with a link."""
    seen = reached()
    for number, (place, stop) in enumerate(zip(st.columns(len(STOPS)), STOPS, strict=True)):
        with place.container(border=True, height="stretch"):
            mark = " :green[:material/check_circle:]" if number < seen else ""
            st.markdown(f"**{number + 1} · {stop.title}**{mark}\n\n{stop.brief}")
            page, fields = address(number)
            st.page_link(page, label=stop.page, icon=":material/arrow_forward:", query_params=fields, width="stretch")
