"""The collection as a map: LoRAs that are near in weight space, or to a model, lie near each other."""

from __future__ import annotations

import streamlit as st

from lol_core.collections.names import counted
from lol_core.insight import plots
from lol_core.insight.embedding import LANDMARKS, Kind
from lol_core.insight.explanation import explain
from lol_core.insight.maps import MapSettings, colourings, regions
from lol_core.insight.picture import Method
from ui.choice import PREFERRED, choose_lora, look_at_link
from ui.figures import figure, take
from ui.frame import frame, need
from ui.keys import key
from ui.maps import choose_family, cluster_names, drawn
from ui.numbers import outside, refuse
from ui.points import any_previews, thumbnail, walk_points
from ui.previews import link_to_lora, show_previews
from ui.scatter import MAX_PLOTLY, scatter
from ui.selection import computed, marked, offer, select, select_button, selected, visible
from ui.state import checkpoints, load_or_stop
from ui.tables import numbers, show

SPACES: dict[str, Kind] = {
    "Updates ⟨ΔW₁, ΔW₂⟩": "updates",
    "Directions of updates": "directions",
    "Singular values": "spectra",
    "Sketches of updates": "sketches",
}
METHODS: tuple[Method, ...] = ("PCA", "UMAP")
NEIGHBOURS = "Neighbours (UMAP)"
SHOWN = 12  # previews of selected LoRAs under the map
source = frame("Map", loras=True)


def choose_settings() -> MapSettings:
    """What to draw, as chosen on the page."""
    latents = {f"Latent of {title}": folder for title, folder in checkpoints(source).items()}
    first: Kind = "sketches" if len(source) > LANDMARKS else "updates"  # of many, what needs no weights again
    look_at_link("space", "space", [*SPACES, *latents])
    space = a.selectbox(
        "Space", [*SPACES, *latents], index=[*SPACES.values()].index(first), key=key("space"), bind="query-params"
    )
    method = b.segmented_control(
        "Picture", METHODS, default="PCA", key=key("method"), required=True, bind="query-params"
    )
    dimensions = c.segmented_control(
        "Dimensions", [2, 3], default=2, key=key("dimensions"), required=True, bind="query-params"
    )
    ids = choose_family(source)
    need(
        len(ids) > dimensions,
        f"A map in {dimensions} dimensions needs more than {dimensions} LoRAs that adapt the same modules.",
    )
    with st.expander("Seed and neighbours", icon=":material/tune:", key=key("map_settings")):
        left, right = st.columns(2)
        seed = left.number_input("Seed", value=0, key=key("map_seed"), bind="query-params")
        near = right.number_input(NEIGHBOURS, value=15, key=key("map_neighbours"), bind="query-params")
    refuse(outside("Seed", seed, 0, 2**31 - 1), outside(NEIGHBOURS, near, 2, 200))
    model = f"{latents[space]} {load_or_stop(latents[space]).created}" if space in latents else ""
    return MapSettings(source.fingerprint, ids, SPACES.get(space, "latent"), model, method, dimensions, seed, near)


a, b, c, d = st.columns([4, 2.5, 2, 4])
settings = choose_settings()
map_, flat = drawn(source, settings), settings.dimensions == 2
space, picture, clusters = map_.space, map_.picture, map_.clusters
offer(source, "map", picture.set_axis(settings.axes, axis=1).add_prefix("map "))
seen = visible(source)
shown = picture if len(seen) == len(source) else picture.loc[[id for id in seen if id in picture.index]]
colours, others = colourings(source, clusters), computed(source, but="map")
names = ["nothing", *dict.fromkeys([*colours, *others])]
look_at_link("colour", "colour", names)
first = 2 if source.labels.shape[1] and len(names) > 2 else 1  # a label, else the cluster
first = next((names.index(label) for label in PREFERRED if label in source.labels and label in names), first)
colour = d.selectbox("Colour", names, index=first, key=key("colour"), bind="query-params")
chosen = selected(source)
if len(shown) < len(picture):
    st.caption(f"Showing the {len(shown):,} selected of {len(picture):,}.")
many = flat and len(shown) > MAX_PLOTLY
with st.container(horizontal=True):
    density = st.toggle("Density", key=key("density"), bind="query-params", disabled=not flat)
    unnamed = not flat or bool((clusters < 0).all())
    found = "No clusters were found." if unnamed else "By the labels of their LoRAs."
    text = found if flat else "In two dimensions."
    named = st.toggle("Name the clusters", key=key("named"), bind="query-params", disabled=unnamed, help=text)
    to_save = many and st.toggle(
        "Figure to save", key=key("to_save"), help="Drawn by Plotly, whose toolbar saves it as SVG or PNG."
    )
file = f"map {settings.method} {settings.kind}"
alt = f"Map of {len(shown)} LoRAs by {space.title}"
colouring = others[colour] if colour in others else colours[colour]() if colour in colours else None
if many and not (density or named or to_save):
    scatter(
        shown,
        source.names,
        colouring,
        name="many",
        alt=alt,
        selected=lambda: selected(source),
        on_select=lambda ids: select(source, ids),
        preview=(lambda id: thumbnail(source, id)) if any_previews(source) else None,
    )
    st.caption(
        f"More than {MAX_PLOTLY:,} points are drawn by WebGL. The wheel zooms, a drag selects, Shift adds to the"
        " selection and Alt takes from it. Density, names of clusters and figures to save are drawn by Plotly, which"
        " takes longer."
    )
    take(lambda: map_.table(source, list(shown.index), settings.axes), "map", file)
else:
    over = regions(clusters, cluster_names(settings, source.fingerprint, clusters, source)) if named else {}
    figure(
        plots.collection_map(shown, source.names, colouring, chosen, density=density, regions=over),
        "map",
        alt,
        map_.table(source, list(shown.index), settings.axes),
        file=file,
        on_select=lambda: marked(source, "map"),
        selection_mode=("points", "box", "lasso"),
    )
    if many:
        st.caption(
            f"Drawn by Plotly. Without density, names and **Figure to save**, more than {MAX_PLOTLY:,} points are drawn"
            " by WebGL, which is faster."
        )
for remark in map_.remarks:
    st.caption(remark)
if unread := len(settings.ids) - len(space.ids):
    st.caption(f"Left out: {counted(unread, 'LoRA')} that cannot be read; the page Zoo says why under **Unwell**.")
show_previews(source, chosen[:SHOWN], linked=True)
if len(chosen) > SHOWN and any_previews(source):
    st.caption(f"The first {SHOWN} of {len(chosen):,} selected. The gallery of the page Zoo has all.")

left, right = st.columns(2)
with left:
    st.subheader("Neighbours")
    options = [id for id in chosen if id in picture.index] or list(space.ids)
    if centre := choose_lora(source, options, "neighbours_of", "of"):
        near = map_.neighbours(source, centre)
        shades = {} if colouring is None else {colour: colouring.reindex(near.index)}
        show(near.assign(**shades), "neighbours", column_config=numbers("%.4g", ["distance"]))
        st.caption(f"By distance in {space.vectors.shape[1]:,} dimensions, not on the picture.")
        show_previews(source, [centre, *near.index])
        with st.container(horizontal=True, vertical_alignment="center"):
            select_button(source, [centre, *near.index], "Select these", "select_neighbours")
            link_to_lora(source, centre, f"Look at {source.names[centre]}")
with right:
    st.subheader("What tells the selection apart")
    if inside := [id for id in chosen if id in picture.index]:
        reasons = explain(source.labels.loc[list(picture.index)].assign(cluster=colours["cluster"]()), inside)
        bar = st.column_config.ProgressColumn(min_value=0, max_value=1, format="%.2f")
        show(reasons.head(12), "reasons", column_config={"effect": bar} | numbers("%.2g", ["p"]))
        st.caption("Effect: |2·AUC − 1| for numbers, Cramér's V for categories. p: of each test alone.")
    else:
        st.info(
            "Draw a lasso around points, or select LoRAs on any page. Then the columns stand here in which they differ"
            " from the others."
        )
walk_points(source, space.ids)
