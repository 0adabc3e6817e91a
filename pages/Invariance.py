"""Turn R: the same LoRA with other factors. ΔW stays; which predictions do? Every sentence on the page is computed from
what stands on it.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
import torch

from lol_core.collections.source import Source
from lol_core.core.batch import Batch, WeightSpec, shared_spec, stack
from lol_core.core.groups import GL, GROUPS, PERMUTATION, Group, O
from lol_core.core.lora import LoRA
from lol_core.core.symmetry import (
    TOLERANCES,
    act,
    carried,
    for_spec,
    given,
    product_change,
    promises,
    relative_change,
    sample_for,
)
from lol_core.errors import LoLError
from lol_core.experiments.paper import FIVE
from lol_core.insight import plots
from lol_core.insight.survey import never_trained
from lol_core.learning.memory import check_memory
from lol_core.learning.models import LoLModel, make_model
from lol_core.learning.models.gl_net import GLNet
from lol_core.learning.tasks import Multiclass, Regression, Task
from ui.choice import choose_lora
from ui.figures import figure, take
from ui.frame import frame, need, needed
from ui.keys import key
from ui.points import walk_points
from ui.state import checkpoints, load_checkpoint, load_lora

DTYPES = {"float32": torch.float32, "float64": torch.float64}
TITLES = {group.key: group.title for group in GROUPS} | {"hand": "by hand"}
WIDTH_LIMIT = 48
TRIED = 20  # LoRAs among which the page looks for one that is not zero, to open with
EDITABLE = 16  # the largest rank whose R is edited by hand
NUMBERS_AT_ONCE = 20_000_000
FEWEST = 50
UNASKED = 1_000_000_000  # numbers read in all, up to which many draws are made without asking

zoo = frame("Invariance")


@st.cache_data(max_entries=8, show_spinner="Looking for a LoRA that was trained …")
def first_trained(fingerprint: str, _zoo: Source) -> str:
    """The first of the first LoRAs whose update is not zero: turning R changes nothing in one that is."""
    for id in _zoo.ids[:TRIED]:
        with suppress(LoLError):
            if not never_trained(load_lora(_zoo, id)):
                return id
    return _zoo.ids[0]


need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
saved = checkpoints(zoo)
top = st.columns([3, 3])
with top[0]:
    first = zoo.ids.index(first_trained(zoo.fingerprint, zoo))
    chosen = needed(choose_lora(zoo, zoo.ids, "lora", "LoRA", index=first), "Choose a LoRA.")
titles = top[1].multiselect(
    "Trained models",
    list(saved),
    default=list(saved)[:5],
    key=key("models_shown"),
    placeholder="none trained yet" if not saved else "choose models",
)
untrained = st.toggle(
    "Also show freshly initialised models of all five kinds (untrained: their predictions mean nothing, their symmetry"
    " is the same)",
    not saved,
    key=key("untrained"),
)


def promised(model: LoLModel) -> str:
    return "nothing" if model.symmetry is None else model.symmetry.title


def group_of(choice: str) -> Group:
    """The group that R is drawn from; one typed in by hand is from GL(r)."""
    return next((group for group in GROUPS if group.key == choice), GL)


@dataclass(frozen=True)
class Shown:
    """A model on the page; task None: untrained."""

    title: str
    model: LoLModel
    task: Task | None

    def values(self, batch: Batch) -> torch.Tensor:
        """Predictions in the user's units (B, outputs), in the batch's precision."""
        twin = (
            self.model
            if batch.dtype == torch.float32
            else in_float64(f"{self.title} {saved.get(self.title)} {zoo.fingerprint} {chosen}", self.model)
        )
        with torch.no_grad():
            outputs = twin(batch)
        return torch.from_numpy(self.task.decode(outputs)) if self.task else outputs.double()

    @property
    def short(self) -> str:
        return re.sub(r" → .*\((seed \d+)\)", r", \1", self.title).removesuffix(" (untrained)")

    def outputs(self) -> list[str]:
        return ["untrained output"] if self.task is None else list(self.task.columns)

    def scale(self, output: int, before: float) -> tuple[float, float]:
        """The ends of its dial: probabilities from 0 to 1, numbers three standard deviations around the training mean,
        untrained ones around the start.
        """
        if self.task is None:
            reach = max(abs(before), 0.1)
            return before - reach, before + reach
        if not isinstance(self.task, Regression):
            return 0.0, 1.0
        mean, std = self.task.mean[output], self.task.std[output]
        return min(mean - 3 * std, before), max(mean + 3 * std, before)

    def verdict(self, change: float, group: str, dtype: torch.dtype) -> str:
        moved = change > TOLERANCES[dtype]
        if promises(self.model.symmetry, group_of(group)):
            return "BROKEN" if moved else "holds"
        return "moves, as it may" if moved else "hardly moved"


@st.cache_resource(max_entries=4, show_spinner="Making models …")
def fresh_models(fingerprint: str, digest: str, _spec: WeightSpec, _batch: Batch) -> list[Shown]:
    """The paper's five kinds with random weights, scaled to this LoRA; Dense only where it fits. GL-net has two
    equivariant layers, so that σ is seen.
    """
    made = []
    for name, kind in FIVE.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                config = kind.configure(width=32, equivariant_layers=2)
                check_memory(name, _spec, 1, config, torch.device("cpu"), fitted=False)
                model = make_model(name, _spec, 1, config)
            except LoLError:
                continue
        model.prepare(_batch, torch.Generator().manual_seed(0))
        made.append(Shown(f"{kind.title} (untrained)", model.eval(), None))
    return made


@st.cache_resource(max_entries=8, show_spinner=False)
def in_float64(key: str, _model: LoLModel) -> LoLModel:
    return copy.deepcopy(_model).double()


@st.cache_resource(max_entries=32, show_spinner=False)
def batch_of(digest: str, _lora: LoRA, spec: str, _spec: WeightSpec, dtype: str) -> Batch:
    return stack([_lora], _spec, torch.float64).to(dtype=DTYPES[dtype])


def start_of(spec: WeightSpec, dtype: str) -> Batch:
    return batch_of(zoo.by_id[chosen].digest, lora, str(hash(spec)), spec, dtype)


def repeated(batch: Batch, count: int) -> Batch:
    return batch[torch.zeros(count, dtype=torch.long)]


try:
    lora = load_lora(zoo, chosen)
    models: list[Shown] = []
    for title in titles:
        checkpoint = load_checkpoint(saved[title])
        if problems := checkpoint.spec.misfits(lora):
            st.warning(f"{title} cannot read this LoRA: {' '.join(problems)}")
            continue
        try:
            checkpoint.model.check_input(stack([lora], checkpoint.spec))
        except LoLError as error:
            st.warning(f"{title}: {error}")
            continue
        models.append(Shown(title, checkpoint.model, checkpoint.task))
    own = shared_spec([lora])
    if untrained:
        models += fresh_models(zoo.fingerprint, zoo.by_id[chosen].digest, own, stack([lora], own))
except LoLError as error:
    st.error(str(error))
    st.stop()
need(models, "Train a model first, or show untrained ones with the switch above.")
ranks = sorted(set(lora.ranks))


def next_draw() -> None:
    st.session_state[key("draw")] += 1


def edited(r: int) -> torch.Tensor | None:
    """The r × r matrix typed into the page, None while it has no inverse."""
    start = pd.DataFrame(np.eye(r), columns=[f"column {j + 1}" for j in range(r)])
    typed = st.data_editor(start, key=key(f"R_{r}"), hide_index=True)
    R = torch.tensor(typed.fillna(0).to_numpy(np.float64))
    if torch.linalg.matrix_rank(R) < r:
        st.error(
            f"det R = {torch.linalg.det(R).item():.3g}: R has no inverse, so (UR, VR⁻ᵀ) does not exist. Change an"
            " entry."
        )
        return None
    return R


@st.fragment
def turn() -> None:
    """R, what it does to the factors, and what the models make of it."""
    left, right = st.columns([3, 2])
    with left:
        group = st.segmented_control(
            "R is drawn from",
            list(TITLES),
            format_func=lambda g: TITLES[g],
            default="gl",
            key=key("group"),
            bind="query-params",
            required=True,
        )
        sized = group_of(group).conditioned and group != "hand"
        exponent = st.slider(
            "κ(R) = 10^x",
            0.0,
            4.0,
            1.0,
            0.25,
            key=key("kappa"),
            bind="query-params",
            disabled=not sized,
            help="The condition number of R.",
        )
        a, b = st.columns(2)
        layers = a.segmented_control(
            "R is",
            ["own", "shared"],
            format_func={"own": "each module's", "shared": "shared"}.__getitem__,
            default="own",
            key=key("shared"),
            bind="query-params",
            required=True,
            disabled=group == "hand",
        )
        dtype_name = (
            b.segmented_control(
                "Computed in", list(DTYPES), default="float32", key=key("dtype"), bind="query-params", required=True
            )
            or "float32"
        )
        a, b = st.columns(2, vertical_alignment="bottom")
        a.button(
            "Draw another R",
            type="primary",
            icon=":material/casino:",
            width="stretch",
            on_click=next_draw,
            disabled=group == "hand",
        )
        draw = int(
            b.number_input(
                "Draw",
                1,
                10**6,
                1,
                key=key("draw"),
                bind="query-params",
                help="The seed of R: the same number gives the same R.",
            )
        )
        dtype = DTYPES[dtype_name]
        original = start_of(own, dtype_name)
        if group == "hand":
            r = ranks[-1]
            if r > EDITABLE:
                st.info(
                    f"R is {r} × {r} here: too large to type. Draw it from a group, or choose a LoRA of rank {EDITABLE}"
                    " or less."
                )
                return
            typed = edited(r)
            if typed is None:
                return
            R = given(original, {r: typed})
        else:
            R = sample_for(
                original,
                group_of(group),
                condition=10.0**exponent if sized else 1.0,
                generator=torch.Generator().manual_seed(draw),
                shared=layers == "shared",
            )
    turned = act(R, original)
    dials: list[plots.Dial] = []
    rows: list[dict[str, Any]] = []
    for shown in models:
        batch = start_of(shown.model.spec, dtype_name)
        try:
            before = shown.values(batch)[0]
            after = shown.values(act(for_spec(R, own, shown.model.spec, batch.rank), batch))[0]
        except LoLError as error:
            st.warning(f"{shown.title}: {error}")
            continue
        output = int(before.argmax()) if shown.task is not None and isinstance(shown.task, Multiclass) else 0
        change = relative_change(after, before)
        verdict = shown.verdict(change, group, dtype)
        low, high = shown.scale(output, float(before[output]))
        unit = shown.outputs()[output]
        dials.append(
            plots.Dial(
                shown.short,
                unit,
                low,
                high,
                float(before[output]),
                float(after[output]),
                verdict,
                change <= TOLERANCES[dtype],
            )
        )
        rows.append(
            {
                "model": shown.title,
                "promises": promised(shown.model),
                "predicts": unit,
                "before R": float(before[output]),
                "after R": float(after[output]),
                "relative change": change,
                "verdict": verdict,
            }
        )
    table = pd.DataFrame(rows)
    still = [row["model"] for row in rows if row["relative change"] <= TOLERANCES[dtype]]
    factors = {
        side: relative_change(*(torch.cat([t.flatten() for t in getattr(b, side)]) for b in (turned, original)))
        for side in ("U", "V")
    }
    worst = max(torch.linalg.cond(matrices).max().item() for matrices in R)
    with st.container(horizontal=True, gap="large"):
        st.metric("κ(R)", f"{worst:.4g}")
        st.metric("U moved by", f"{factors['U']:.1%}")
        st.metric("V moved by", f"{factors['V']:.1%}")
        gap = product_change(turned, original)
        st.metric(
            "ΔW moved by",
            f"{gap:.1e}",
            help=f"Relative, over {len(own.modules)} modules; zero up to rounding in {dtype_name}.",
        )
    st.markdown(
        f"**{len(rows) - len(still)} of {len(rows)} models** took (UR, VR⁻ᵀ) for another LoRA than (U, V)."
        + (f" {', '.join(still)} did not." if still else "")
    )
    with st.container(horizontal=True, gap="small"):
        for i, dial in enumerate(dials):
            words = f"{dial.title}: {dial.before:.5g} before R, {dial.after:.5g} after; it {dial.verdict}"
            st.plotly_chart(
                plots.needle(dial), key=key(f"needle_{i}"), alt=words, width=156, config={"displayModeBar": False}
            )
    with right:  # pictures come after the numbers, which should not wait for them
        r = int(original.ranks[0, own.groups[0][1][0]])
        whose = (
            own.modules[own.groups[0][1][0]].name
            if group != "hand" and layers == "own"
            else f"every module of rank {r}"
        )
        figure(plots.matrix(R[0][0, 0, :r, :r].numpy(), f"R of {whose}"), "R", "The matrix R")
    st.dataframe(
        table,
        hide_index=True,
        key=key("moves"),
        column_config={"relative change": st.column_config.NumberColumn(format="scientific")}
        | {name: st.column_config.NumberColumn(format="%.6g") for name in ("before R", "after R")},
    )
    take(lambda: table, "needles")
    module = st.selectbox(
        "The factors of", own.modules, format_func=lambda m: f"{m.name}  ({m.n} × {m.m})", key=key("module")
    )
    position = own.modules.index(module)
    g, place = next((g, indices.index(position)) for g, (_, indices) in enumerate(own.groups) if position in indices)

    def corner(batch: Batch) -> dict[str, np.ndarray]:
        u, v = batch.U[g][0, place, :WIDTH_LIMIT].double(), batch.V[g][0, place, :WIDTH_LIMIT].double()
        return {"U": u.numpy(), "V": v.numpy(), "ΔW = U Vᵀ": (u @ v.mT).numpy()}

    figure(
        plots.factor_heatmaps(corner(original), corner(turned)), "heatmaps", "U, V and their product before and after R"
    )
    if max(module.n, module.m) > WIDTH_LIMIT:
        st.caption(
            f"The first {WIDTH_LIMIT} of {module.n} rows of U and {module.m} of V, and the corner of ΔW they make. Each"
            " pair shares one colour scale."
        )


@st.cache_data(max_entries=16, show_spinner=False)
def changes_of(key: str, count: int, condition: float, dtype_name: str, _models: list[Shown]) -> pd.DataFrame:
    """Relative changes of the models' predictions over `count` draws from each group: columns model, group, change."""
    found = []
    bar = st.progress(0.0, "Drawing R")
    for i, shown in enumerate(_models):
        batch = start_of(shown.model.spec, dtype_name)
        before = shown.values(batch)
        block = max(1, min(count, NUMBERS_AT_ONCE // max(shown.model.n_features(), shown.model.spec.parameters)))
        for j, group in enumerate(GROUPS):
            generator = torch.Generator().manual_seed(0)
            for start in range(0, count, block):
                many = repeated(batch, min(block, count - start))
                after = shown.values(act(sample_for(many, group, condition=condition, generator=generator), many))
                change = (after - before).norm(dim=1) / before.norm().clamp(min=1e-30)
                found.append(pd.DataFrame({"model": shown.title, "group": group.title, "change": change.numpy()}))
            bar.progress((4 * i + j + 1) / (4 * len(_models)), f"{shown.title}: {group.title}")
    bar.empty()
    return pd.concat(found, ignore_index=True)


@st.fragment
def many_draws() -> None:
    """Hundreds of R from each group, and which model keeps still under which."""
    a, b, c = st.columns([2, 2, 2], vertical_alignment="bottom")
    cost = FEWEST * len(GROUPS) * sum(max(shown.model.n_features(), shown.model.spec.parameters) for shown in models)
    count = a.segmented_control(
        "Draws from each group", [FEWEST, 200, 500], default=FEWEST if cost <= UNASKED else None, key=key("count")
    )
    condition = 10.0 ** b.select_slider(
        "κ(R)", [0.0, 1.0, 2.0, 3.0, 4.0], 2.0, format_func=lambda x: f"{10**x:,.0f}", key=key("many_kappa")
    )
    dtype_name = (
        c.segmented_control("Computed in", list(DTYPES), default="float32", key=key("many_dtype"), required=True)
        or "float32"
    )
    if not count:
        st.caption(
            f"Choose how many: each of the {len(models)} models will read a LoRA of {lora.parameters:,} parameters so"
            " many times."
        )
        return
    tolerance = TOLERANCES[DTYPES[dtype_name]]
    identity = " ".join([zoo.fingerprint, chosen, *(f"{shown.title}@{saved.get(shown.title)}" for shown in models)])
    try:
        changes = changes_of(identity, count, condition, dtype_name, models)
    except LoLError as error:
        st.error(str(error))
        return
    figure(
        plots.spread_of_changes(changes, tolerance, torch.finfo(DTYPES[dtype_name]).eps / 10),
        "violins",
        "Relative change of each model's prediction over many draws of R, by group",
        changes,
    )
    largest = changes.pivot_table("change", "model", "group", "max", sort=False)[[g.title for g in GROUPS]]
    marks = largest.map(lambda change: f"{'keeps still' if change <= tolerance else 'moves'} ({change:.1e})")
    marks.insert(0, "promises", [promised(shown.model) for shown in models])
    st.dataframe(marks, key=key("groups"))
    broken = [
        s.title
        for s in models
        for g in GROUPS
        if promises(s.model.symmetry, g) and largest[g.title][s.title] > tolerance
    ]
    odd = [t for t in largest.index if largest[O.title][t] > tolerance >= largest[PERMUTATION.title][t]]
    st.markdown(
        f"Largest change of {count} draws from each group. "
        + (
            f"**{', '.join(dict.fromkeys(broken))} broke a promise.** "
            if broken
            else f"All {len(models)} models kept what they promise. "
        )
        + (
            f"Moved by O(r) but not by permutations: {', '.join(odd)}."
            if odd
            else "None moves under O(r) but not under permutations."
        )
    )


nets = [shown for shown in models if isinstance(shown.model, GLNet)]


@st.fragment
def inside() -> None:
    """R followed through GL-net: it enters with the factors, passes every equivariant layer, and leaves in the
    products.
    """
    a, b, c = st.columns([3, 2, 2], vertical_alignment="bottom")
    net = a.selectbox("Model", nets, format_func=lambda s: s.title, key=key("net")) if len(nets) > 1 else nets[0]
    group = (
        b.segmented_control(
            "R from", list(GROUPS), format_func=lambda g: g.title, default=GL, key=key("inside_group"), required=True
        )
        or GL
    )
    dtype_name = (
        c.segmented_control("Computed in", list(DTYPES), default="float64", key=key("inside_dtype"), required=True)
        or "float64"
    )
    batch = start_of(net.model.spec, dtype_name)
    R = sample_for(batch, group, condition=10.0, generator=torch.Generator().manual_seed(0))
    twin = (
        net.model
        if dtype_name == "float32"
        else in_float64(f"{net.title} {saved.get(net.title)} {zoo.fingerprint} {chosen}", net.model)
    )
    assert isinstance(twin, GLNet)
    found = carried(lambda x: twin.stages(twin.normalized(x)), batch, R)
    turned = act(R, batch)
    start = relative_change(*(torch.cat([t.flatten() for t in (*x.U, *x.V)]) for x in (turned, batch)))
    outcome = relative_change(net.values(turned), net.values(batch))
    names = ["U, V", *(stage.name for stage in found), "products Ũ Ṽᵀ", "prediction"]
    moved = [start, *(stage.moved for stage in found), found[-1].product, outcome]
    off = [None, *(stage.off for stage in found), None, None]
    figure(
        plots.passage(names, moved, off),
        "passage",
        "How far each stage moves, and how far it is from R acting on it",
        pd.DataFrame({"stage": names, "moved by R": moved, "differs from R ⋆ F(x)": off}),
    )
    tolerance = TOLERANCES[DTYPES[dtype_name]]
    carrying = [stage.name for stage in found if stage.off <= tolerance]
    st.markdown(
        f"R enters with the factors and moves them by {start:.0%}. {len(carrying)} of {len(found)} equivariant stages"
        f" give R ⋆ F(x) to within {max(stage.off for stage in found):.1e}; in the products R is"
        f" {'gone' if found[-1].product <= tolerance else 'still there'} ({found[-1].product:.1e}), and with it in the"
        f" prediction ({outcome:.1e})."
    )
    stage = found[
        [s.name for s in found].index(
            st.segmented_control(
                "Look at", [s.name for s in found], default=found[0].name, key=key("stage"), required=True
            )
        )
    ]
    shown = {"F(x)": stage.before, "F(R ⋆ x)": stage.after, "R ⋆ F(x)": stage.expected}
    figure(
        plots.matrices({f"Ũ of {name}": s.U[0, 0].double().numpy() for name, s in shown.items()}),
        "stage_u",
        "Ũ of the first module at this stage",
    )
    products = {f"Ũ Ṽᵀ of {name}": (s.U[0, 0] @ s.V[0, 0].mT).double().numpy() for name, s in shown.items()}
    figure(plots.matrices(products), "stage_product", "The product of the first module at this stage")


PARTS = {"One R": turn, "Many draws from every group": many_draws} | (
    {"R on its way through GL-net": inside} if nets else {}
)
part = st.segmented_control(
    "Show",
    list(PARTS),
    default="One R",
    key=key("part"),
    bind="query-params",
    required=True,
    label_visibility="collapsed",
)
PARTS[part or "One R"]()

walk_points(zoo)
