"""A page with a map of synthetic points (`?points=20000`) and nothing else: no LoRA was made for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from ui.scatter import scatter


@st.cache_resource
def synthetic(count: int) -> tuple[pd.DataFrame, dict[str, str], pd.DataFrame]:
    """Eight round clouds on a circle, their names, and a number and a category of each point."""
    rng = np.random.default_rng(0)
    cloud = np.arange(count) % 8
    angle = cloud * np.pi / 4
    xy = np.stack([np.cos(angle), np.sin(angle)], 1) * 5 + rng.normal(size=(count, 2))
    ids = pd.Index([f"p{i}" for i in range(count)])
    points = pd.DataFrame(xy, index=ids, columns=["x", "y"])
    columns = pd.DataFrame({"cloud": [f"cloud {k}" for k in cloud], "height": xy[:, 1]}, index=ids)
    return points, {id: f"synthetic point {id}" for id in ids}, columns


def choose(ids: list[str]) -> None:
    st.session_state["chosen"] = ids


def main() -> None:
    st.set_page_config(layout="wide")
    count = int(st.query_params.get("points", 20_000))
    st.session_state.setdefault("chosen", [])
    points, names, columns = synthetic(count)
    colour = st.segmented_control("Colour", ["cloud", "height"], default="cloud", required=True)
    st.button("Select the first hundred", on_click=choose, args=(list(points.index[:100]),))
    st.markdown(
        f"Python has **{len(st.session_state['chosen'])}** selected: {', '.join(st.session_state['chosen'][:3])}."
    )
    if count < 1000:
        st.caption("Chosen: " + " ".join(st.session_state["chosen"]))
    if not st.toggle("Map", True):
        return
    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
    scatter(
        points,
        names,
        columns[colour],
        name="synthetic",
        alt=f"{count} synthetic points",
        selected=lambda: st.session_state["chosen"],
        on_select=choose,
        preview=lambda id: pixel if id.endswith("0") else None,
    )


if __name__ == "__main__":
    main()
