"""The collection as a map: LoRAs that are near in weight space, or to a model, lie near each other."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lol_core.collections.zoo import Zoo
from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.embedding import Kind, families
from lol_core.insight.explanation import explain, name_clusters
from lol_core.insight.maps import MapSettings
from lol_core.insight.picture import Method
from ui.choice import choose_lora
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.jobs import MapJob
from ui.keys import key
from ui.points import walk_points
from ui.progress import follow
from ui.selection import computed, marked, offer, select, selected, visible
from ui.state import checkpoints, load_checkpoint, preview_of, session

UPDATES, DIRECTIONS, SPECTRA = "Updates ⟨ΔW₁, ΔW₂⟩", "Directions of updates", "Singular values"
OFFERED = 1000  # LoRAs in a list to choose from; of more, those that are selected
SHOWN = 12  # previews of selected LoRAs under the map
zoo = frame("Map")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
state = session()


@st.cache_data(max_entries=4, show_spinner=False)
def families_of(fingerprint: str, _zoo: Zoo) -> list[tuple[str, ...]]:
    return families(_zoo.entries)


@st.cache_data(max_entries=8, show_spinner=False)
def cluster_names(settings: MapSettings, fingerprint: str, _clusters: pd.Series, _zoo: Zoo) -> dict[int, str]:
    return name_clusters(_clusters, _zoo.labels)


groups = families_of(zoo.fingerprint, zoo)
models = checkpoints(zoo)

a, b, c, d = st.columns([4, 2, 2, 4])
space_title = a.selectbox(
    "Space",
    [UPDATES, DIRECTIONS, SPECTRA, *(f"Latent of {title}" for title in models)],
    key=key("space"),
    bind="query-params",
)
method = b.segmented_control(
    "Picture", ["PCA", "UMAP"], default="PCA", key=key("method"), bind="query-params", required=True
)
dimensions = c.segmented_control(
    "Dimensions", [2, 3], default=2, key=key("dimensions"), bind="query-params", required=True
)
ids = groups[0]
if len(groups) > 1:
    first = [zoo.by_id[group[0]] for group in groups]
    titles = [
        f"{len(g):,} × {e.suggested_base or e.base_model or 'unknown base'}, {e.modules} modules"
        for g, e in zip(groups, first, strict=True)
    ]
    family = st.selectbox(
        "LoRAs of the same modules",
        range(len(groups)),
        format_func=titles.__getitem__,
        key=key("family"),
        help="Only these have distances.",
    )
    ids = groups[family]
need(
    len(ids) > int(dimensions or 2),
    f"A map in {dimensions} dimensions needs more than {dimensions} LoRAs that adapt the same modules.",
)
need(space_title, "Choose a space.")
with st.expander("Seed and neighbours", icon=":material/tune:", key=key("map_settings")):
    left, right = st.columns(2)
    seed = int(left.number_input("Seed", 0, 2**31 - 1, 0, key=key("map_seed"), bind="query-params"))
    neighbours = int(
        right.number_input("Neighbours (UMAP)", 2, 200, 15, key=key("map_neighbours"), bind="query-params")
    )
KINDS: dict[str, Kind] = {UPDATES: "updates", DIRECTIONS: "directions", SPECTRA: "spectra"}
kind = KINDS.get(space_title, "latent")
folder = models[space_title.removeprefix("Latent of ")] if kind == "latent" else None
way: Method = "UMAP" if method == "UMAP" else "PCA"
try:
    model = None if folder is None else load_checkpoint(folder)
except LoLError as error:
    st.error(str(error))
    st.stop()
settings = MapSettings(
    zoo.fingerprint,
    ids,
    kind,
    model="" if model is None else f"{folder} {model.created}",
    method=way,
    dimensions=int(dimensions or 2),
    seed=seed,
    neighbours=neighbours,
)

if settings not in state.maps:
    job = state.mapping
    if job is None or job.settings != settings or job.zoo is not zoo:
        if job is not None:
            job.stop()
        earlier = [known.picture for of, known in state.maps.items() if settings.continues(of)]
        state.mapping = job = MapJob(zoo, settings, model, earlier[-1] if earlier else None)
        job.start()
    follow(job, "stop_map")
    if not job.running:
        if job.result is not None:
            while len(state.maps) >= 6:
                state.maps.pop(next(iter(state.maps)))
            state.maps[settings] = job.result
            st.rerun()
        st.error(job.error) if job.error else st.caption("Stopped.")
        if st.button("Draw the map", type="primary", icon=":material/brush:"):
            state.mapping = None
            st.rerun()
    st.stop()

drawn = state.maps[settings]
space, picture, clusters = drawn.space, drawn.picture, drawn.clusters
offer(zoo, "map", picture.add_prefix("map "))
shown = picture.loc[[id for id in visible(zoo) if id in picture.index]]
columns = {
    "nothing": None,
    "cluster": clusters.map(lambda k: "in no cluster" if k < 0 else f"cluster {k + 1}").rename("cluster"),
}
columns |= {name: zoo.labels[name] for name in zoo.labels.columns if zoo.labels[name].notna().any()}
columns |= {
    "base model": pd.Series(
        {e.path: e.suggested_base or e.base_model or "unknown" for e in zoo.entries}, name="base model"
    )
}
for source, table in computed(zoo).items():
    columns |= {name: table[name] for name in table.columns if source != "map"}
colour = d.selectbox(
    "Colour",
    list(columns),
    index=min(2, len(columns) - 1) if zoo.labels.shape[1] else 1,
    key=key("colour"),
    bind="query-params",
)
chosen = selected(zoo)


def take_selection() -> None:
    marked(zoo, "map")


if space.share < 0.999:
    st.caption(
        f"So many LoRAs are placed by their products with {len(space.vectors[0]):,} of them, drawn at random. That"
        f" holds {space.share:.0%} of the others' squared norm: distances come out too small where it is little. The"
        " page LoRA finds the nearest by exact distances."
    )
if len(shown) < len(picture):
    st.caption(f"Showing the {len(shown):,} selected of {len(picture):,}.")
left, right, _ = st.columns([2, 2, 4])
density = left.toggle("Density", key=key("density"), bind="query-params", disabled=dimensions == 3)
named = right.toggle(
    "Name the clusters", key=key("named"), bind="query-params", disabled=dimensions == 3 or bool((clusters < 0).all())
)
regions = {}
if named:
    for k, name in cluster_names(settings, zoo.fingerprint, clusters, zoo).items():
        regions[f"{name} · {(clusters == k).sum()}" if name in regions else name] = list(clusters.index[clusters == k])
chart = plots.collection_map(shown, zoo.names, columns.get(colour or "nothing"), chosen, density, regions)
numbers = shown.assign(name=[zoo.names[id] for id in shown.index], cluster=clusters.reindex(shown.index)).rename_axis(
    "lora"
)
figure(
    chart,
    "map",
    f"Map of {len(shown)} LoRAs by {space_title}",
    numbers,
    on_select=take_selection,
    selection_mode=("points", "box", "lasso"),
)
if pictures := [(id, path) for id in chosen[:SHOWN] if (path := preview_of(zoo, id))]:
    with st.container(horizontal=True):
        for id, path in pictures:
            with st.container(width=190):
                st.image(str(path), width=180)
                page_link("pages/LoRA.py", zoo.names[id].rsplit("/", 1)[-1], ":material/layers:", lora=id)
    if len(chosen) > SHOWN:
        st.caption(f"Previews of the first {SHOWN} of {len(chosen):,} selected.")
if drawn.moved is not None:
    st.caption(
        f"Laid over the map before it: its points lie {drawn.moved:.0%} of that map's radius from where they were (root"
        " mean square)."
    )
if dimensions == 3:
    st.caption("Drag to turn it. Lasso and box work in two dimensions.")

left, right = st.columns(2)
with left:
    st.subheader("Neighbours")
    options = [id for id in chosen or picture.index[:OFFERED] if id in picture.index]
    if centre := choose_lora(zoo, options, "neighbours_of", "of") if options else None:
        near = space.neighbours(centre, 8)
        table = pd.DataFrame(
            {"name": [zoo.names[id] for id in near.index], "distance": near.to_numpy()}, index=near.index
        )
        if (values := columns.get(colour or "nothing")) is not None:
            table[colour] = values.reindex(near.index).to_numpy()
        st.dataframe(
            table,
            hide_index=True,
            key=key("neighbours"),
            column_config={"distance": st.column_config.NumberColumn(format="%.4g")},
        )
        st.caption(f"By distance in {space.vectors.shape[1]} dimensions, not on the picture.")
        if neighbours_shown := [path for id in [centre, *near.index] if (path := preview_of(zoo, id))]:
            with st.container(horizontal=True):
                for path in neighbours_shown:
                    st.image(str(path), width=180)
        with st.container(horizontal=True):
            st.button(
                "Select these",
                icon=":material/select_all:",
                on_click=select,
                args=(zoo, [centre, *near.index]),
                key=key("select_neighbours"),
            )
            page_link("pages/LoRA.py", f"Look at {zoo.names[centre]}", ":material/layers:", lora=centre)
with right:
    st.subheader("What tells the selection apart")
    inside = [id for id in chosen if id in picture.index]
    if not inside:
        st.info(
            "Draw a lasso around points, or select LoRAs on any page. Then the columns stand here in which they differ"
            " from the others."
        )
    else:
        reasons = explain(zoo.labels.loc[list(picture.index)].assign(cluster=columns["cluster"]), inside)
        bar, number = (
            st.column_config.ProgressColumn(min_value=0, max_value=1, format="%.2f"),
            st.column_config.NumberColumn(format="%.2g"),
        )
        st.dataframe(reasons.head(12), hide_index=True, key=key("reasons"), column_config={"effect": bar, "p": number})
        st.caption("Effect: |2·AUC − 1| for numbers, Cramér's V for categories. p: of each test alone.")
walk_points(zoo, list(picture.index))
