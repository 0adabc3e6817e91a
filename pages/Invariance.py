"""Turn R: the same LoRA with other factors. ΔW stays; which predictions do? Every sentence on the page is computed from
what stands on it.
"""

from __future__ import annotations

from contextlib import suppress

import pandas as pd
import streamlit as st
import torch

from lol_core.collections.source import Source
from lol_core.core.groups import GL, GROUPS, named
from lol_core.core.progress import Reporter
from lol_core.core.symmetry import TOLERANCES
from lol_core.errors import LoLError
from lol_core.experiments.paper import FIVE
from lol_core.insight import plots
from lol_core.insight.health import never_trained
from lol_core.insight.invariance import CORNER, Study, matrix_of
from lol_core.insight.order import natural
from ui.choice import choose_lora
from ui.figures import figure, numbers_of, take
from ui.frame import frame, need, needed
from ui.jobs import sentence
from ui.keys import key
from ui.needles import needles
from ui.points import walk_points
from ui.state import checkpoints, load_lora, loaded_checkpoints
from ui.tables import numbers, show
from ui.turning import TITLES, Precision, choose_precision, choose_R, what_is_still

TRIED = 20  # LoRAs among which the page looks for one that is not zero, to open with
FEWEST = 50
UNASKED = 1_000_000_000  # numbers read in all, up to which many draws are made without asking
source = frame("Invariance", loras=True)


@st.cache_data(max_entries=8, show_spinner="Looking for a LoRA that was trained …")
def first_trained(fingerprint: str, _source: Source) -> int:
    """The place of the first LoRA whose update is not zero: turning R changes nothing in one that is."""
    for place, id in enumerate(_source.ids[:TRIED]):
        with suppress(LoLError):
            if not never_trained(load_lora(_source, id)):
                return place
    return 0


@st.cache_resource(max_entries=4, show_spinner="Making models …")
def study_of(fingerprint: str, id: str, titles: tuple[str, ...], stamps: tuple[str, ...], *, fresh: bool) -> Study:
    """Raises LoLError."""
    return Study.of(load_lora(source, id), {title: saved[title] for title in titles}, FIVE if fresh else {})


@st.cache_data(max_entries=16, show_spinner=False)
def changes_of(identity: str, count: int, condition: float, precision: Precision, _study: Study) -> pd.DataFrame:
    bar = st.progress(0.0, "Drawing R")
    reporter = Reporter(lambda progress: bar.progress(progress.fraction, progress.message))
    changes = _study.changes(count, condition=condition, dtype=getattr(torch, precision), reporter=reporter)
    bar.empty()
    return changes


folders, saved = checkpoints(source), loaded_checkpoints(source)
left, right = st.columns(2)
with left:
    first = first_trained(source.fingerprint, source)
    chosen = needed(choose_lora(source, source.ids, "lora", "LoRA", index=first), "Choose a LoRA.")
titles = right.multiselect(
    "Trained models",
    list(saved),
    default=list(saved)[:5],
    key=key("models_shown"),
    placeholder="choose models" if saved else "none trained yet",
)
fresh = st.toggle(
    "Also show freshly initialised models of all five kinds (untrained: their predictions mean nothing, their symmetry"
    " is the same)",
    not saved,
    key=key("untrained"),
)
stamps = tuple(f"{folders[title]} {saved[title].created}" for title in titles)
try:
    study = study_of(source.fingerprint, chosen, tuple(titles), stamps, fresh=fresh)
except LoLError as error:
    st.error(sentence(error))
    st.stop()
for problem in study.problems:
    st.warning(problem)
need(study.models, "Train a model first, or show untrained ones with the switch above.")
modules = sorted(study.spec.modules, key=lambda module: natural(module.name))


@st.fragment
def turn() -> None:
    """R, what it does to the factors, and what the models make of it."""
    left, right = st.columns([3, 2])
    with left:
        R, group, precision = choose_R(study)
    turned = study.turn(R, group, getattr(torch, precision))
    for problem in turned.problems:
        st.warning(problem)
    text = f"Relative, over {len(modules)} modules; zero up to rounding in {precision}."
    with st.container(horizontal=True, gap="medium"):
        st.metric("κ(R)", f"{turned.condition:.4g}")
        st.metric("U moved by", f"{turned.moved['U']:.1%}")
        st.metric("V moved by", f"{turned.moved['V']:.1%}")
        st.metric("ΔW moved by", f"{turned.moved['ΔW']:.1e}", help=text)
    count, still = len(turned.dials), turned.still
    with right:  # beside what one presses, so that they are seen to move
        need(count, "No model could read this LoRA. Choose another.")
        needles(turned.dials)
    stayed = f" The other {len(still)} did not." if 0 < len(still) < count else ""
    st.markdown(f"**{count - len(still)} of {count} models** took (UR, VR⁻ᵀ) for another LoRA than (U, V).{stayed}")
    st.caption(what_is_still(precision))
    formats = numbers("%.6g", ("before R", "after R")) | numbers("scientific", ["relative change"])
    show(turned.table, "moves", column_config=formats)
    take(lambda: turned.table, "needles")
    label = "R and the factors of"
    module = st.selectbox(label, modules, format_func=lambda m: f"{m.name}  ({m.n} × {m.m})", key=key("module"))
    left, right = st.columns([1, 2])
    with left:
        matrix = matrix_of(R, turned.before, module)
        data = numbers_of(plots.matrix(matrix, f"R of {module.name}"))
        figure(plots.matrix(matrix, "R"), "R", f"The matrix R of {module.name}", data)
    with right:
        chart = plots.factor_heatmaps(study.corner(turned.before, module), study.corner(turned.after, module))
        figure(chart, "heatmaps", "U, V and their product before and after R")
    if max(module.n, module.m) > CORNER:
        st.caption(
            f"The first {min(CORNER, module.n)} of {module.n} rows of U and {min(CORNER, module.m)} of {module.m} of V,"
            " and the corner of their product that they make. Each pair shares one colour scale."
        )


@st.fragment
def many_draws() -> None:
    """Hundreds of R from each group, and which model keeps still under which."""
    a, b, c = st.columns(3, vertical_alignment="bottom")
    default = FEWEST if study.cost(FEWEST) <= UNASKED else None
    count = a.segmented_control("Draws from each group", [FEWEST, 200, 500], default=default, key=key("count"))
    powers = [0.0, 1.0, 2.0, 3.0, 4.0]
    power = b.select_slider("κ(R)", powers, 2.0, format_func=lambda x: f"{10**x:,.0f}", key=key("many_kappa"))
    with c:
        precision = choose_precision("many_dtype", "float32")
    if not count:
        text = f"will read a LoRA of {study.lora.parameters:,} parameters so many times."
        st.caption(f"Choose how many: each of the {len(study.models)} models {text}")
        return
    identity = repr((source.fingerprint, chosen, titles, stamps, fresh))
    try:
        changes = changes_of(identity, count, 10.0**power, precision, study)
    except LoLError as error:
        st.error(sentence(error))
        return
    dtype = getattr(torch, precision)
    chart = plots.spread_of_changes(changes, TOLERANCES[dtype], torch.finfo(dtype).eps / 10)
    text = "Relative change of each model's prediction over many draws of R, by group"
    figure(chart, "violins", text, changes)
    marks, kept = study.kept_promises(changes, TOLERANCES[dtype])
    show(marks, "groups", index=True)
    st.markdown(f"Largest change of {count} draws from each group. {kept}")
    st.caption(what_is_still(precision))


@st.fragment
def inside() -> None:
    """R followed through GL-net: it enters with the factors, passes every equivariant layer, and leaves in the
    products.
    """
    a, b, c = st.columns([3, 2, 2], vertical_alignment="bottom")
    net = a.selectbox("Model", study.equivariant, format_func=lambda examined: examined.title, key=key("net"))
    keys = [group.key for group in GROUPS]
    group = b.segmented_control(
        "R from", keys, format_func=TITLES.__getitem__, default=GL.key, key=key("inside_group"), required=True
    )
    with c:
        precision = choose_precision("inside_dtype", "float64")
    passage = study.passage(net, named(group), getattr(torch, precision))
    chart = plots.passage(passage.names, passage.moved, passage.off)
    figure(chart, "passage", "How far each stage moves, and how far it is from R acting on it", passage.table)
    tolerance, stages = TOLERANCES[getattr(torch, precision)], passage.stages
    st.markdown(
        f"R enters with the factors and moves them by {passage.moved[0]:.0%}. {passage.carrying(tolerance)} of"
        f" {len(stages)} equivariant stages give R ⋆ F(x) to within {max(stage.off for stage in stages):.1e}; in the"
        f" products R is {'gone' if passage.moved[-2] <= tolerance else 'still there'} ({passage.moved[-2]:.1e}), and"
        f" with it in the prediction ({passage.moved[-1]:.1e})."
    )
    of_name = {stage.name: stage for stage in stages}
    stage = of_name[
        st.segmented_control("Look at", list(of_name), default=stages[0].name, key=key("stage"), required=True)
    ]
    shown = {"F(x)": stage.before, "F(R ⋆ x)": stage.after, "R ⋆ F(x)": stage.expected}
    left = {f"Ũ of {name}": s.U[0, 0].double().numpy() for name, s in shown.items()}
    figure(plots.matrices(left), "stage_u", "Ũ of the first module at this stage")
    products = {f"Ũ Ṽᵀ of {name}": (s.U[0, 0] @ s.V[0, 0].mT).double().numpy() for name, s in shown.items()}
    figure(plots.matrices(products), "stage_product", "The product of the first module at this stage")


PARTS = {"One R": turn, "Many draws from every group": many_draws}
PARTS |= {"R on its way through GL-net": inside} if study.equivariant else {}
part = st.segmented_control(
    "Show",
    list(PARTS),
    default="One R",
    key=key("part"),
    bind="query-params",
    required=True,
    label_visibility="collapsed",
)
PARTS[part]()
walk_points(source)
