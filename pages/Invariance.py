"""Turn R: the same LoRA with other factors. ΔW stays; which predictions do?"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import streamlit as st
import torch

from lol_core import plots
from lol_core.batches import Batch, WeightSpec, make_batch, shared_spec
from lol_core.errors import LoLError
from lol_core.models import MODELS, LoLModel, ModelConfig, make_model
from lol_core.symmetry import TOLERANCES, act, product_change, promises, relative_change, sample_for
from lol_core.tasks import Task
from ui.frame import frame, need
from ui.state import checkpoints, load_checkpoint, load_lora, session

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MAX_DRAWS = 200
PROMISES = {"none": "nothing", "O": "O(r)", "GL": "GL(r)"}
WIDTH_LIMIT = 48

zoo = frame("Invariance")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
st.markdown("For every invertible R, (UR, VR⁻ᵀ) is the same LoRA as (U, V). A model of LoRAs should not be able to tell them apart.")

saved = checkpoints(zoo)
top = st.columns([3, 3])
chosen = top[0].selectbox("LoRA", zoo.ids, format_func=lambda id: zoo.names[id], key="lora", bind="query-params")
titles = top[1].multiselect(
    "Trained models", list(saved), default=list(saved)[:5], key="models_shown", placeholder="none trained yet" if not saved else "choose models"
)
controls = st.columns([2, 3, 2, 2], vertical_alignment="bottom")
group = controls[0].segmented_control("R is drawn from", ["gl", "o"], format_func={"gl": "GL(r)", "o": "O(r)"}.get, default="gl", key="group", required=True)
exponent = controls[1].slider(
    "Condition number κ(R) = 10^x", 0.0, 4.0, 2.0, 0.25, key="kappa", bind="query-params", disabled=group == "o", help="κ = 1 is a rotation times a scalar."
)
condition = 10.0**exponent if group == "gl" else 1.0
dtype_name = controls[2].segmented_control("Computed in", list(DTYPES), default="float32", key="dtype", required=True)
dtype = DTYPES[dtype_name]
state = session()
if controls[3].button("Draw another R", type="primary", icon=":material/casino:", width="stretch"):
    state.draws = min(state.draws + 1, MAX_DRAWS)
untrained = st.toggle(
    "Also show freshly initialised models of all five kinds (untrained: their predictions mean nothing, their symmetry is the same)", not saved, key="untrained"
)

try:
    lora = load_lora(zoo, chosen)
    models: list[tuple[str, LoLModel, Task | None]] = []
    for title in titles:
        checkpoint = load_checkpoint(saved[title])
        if problems := checkpoint.spec.misfits(lora):
            st.warning(f"{title} cannot read this LoRA: {' '.join(problems)}")
        else:
            models.append((title, checkpoint.model, checkpoint.task))
except LoLError as error:
    st.error(str(error))
    st.stop()


@st.cache_resource(max_entries=4, show_spinner="Making models …")
def fresh_models(fingerprint: str, digest: str, _spec: WeightSpec, _batch: Batch) -> list[tuple[str, LoLModel]]:
    """The five kinds with random weights, scaled to this LoRA; Dense only where it fits."""
    made = []
    for name, kind in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                model = make_model(name, _spec, 1, ModelConfig(width=32))
            except LoLError:
                continue
        model.prepare(_batch, torch.Generator().manual_seed(0))
        made.append((f"{kind.title} (untrained)", model.eval()))
    return made


own_spec = shared_spec([lora])
if untrained:
    models += [(title, model, None) for title, model in fresh_models(zoo.fingerprint, zoo.by_id[chosen].digest, own_spec, make_batch([lora], own_spec))]
need(models, "Train a model first, or show untrained ones with the switch above.")


@st.cache_resource(max_entries=8, show_spinner=False)
def in_float64(key: str, _model: LoLModel) -> LoLModel:
    return copy.deepcopy(_model).double()


def predict(title: str, model: LoLModel, task: Task | None, batch: Batch) -> torch.Tensor:
    """Outputs in the user's units, in the chosen precision."""
    twin = model if dtype == torch.float32 else in_float64(f"{title} {saved.get(title)} {zoo.fingerprint} {chosen}", model)
    with torch.no_grad():
        outputs = twin(batch)
    return torch.from_numpy(task.decode(outputs)) if task else outputs.double()


def draw(batch: Batch, number: int) -> Batch:
    """The batch under the R of this draw; every model sees the same R for modules of the same place."""
    return act(sample_for(batch, group, condition, torch.Generator().manual_seed(number)), batch)


def verdict(model: LoLModel, change: float) -> str:
    moved = change > TOLERANCES[dtype]
    if promises(model.symmetry, group):
        return "BROKEN" if moved else "holds"
    return "moves, as it may" if moved else "hardly moved"


rows, before_all, after_all = [], [], []
for title, model, task in models:
    batch = make_batch([lora], model.spec, torch.float64).to(dtype=dtype)
    try:
        before = predict(title, model, task, batch)
        after = [predict(title, model, task, draw(batch, number)) for number in range(state.draws)]
    except LoLError as error:
        st.warning(f"{title}: {error}")
        continue
    unit = task.targets[0] if task else "output"
    change = relative_change(after[-1], before)
    rows.append(
        {
            "model": title,
            "promises": PROMISES[model.symmetry],
            "predicts": unit,
            "before R": float(before[0, 0]),
            "after R": float(after[-1][0, 0]),
            "relative change": change,
            "verdict": verdict(model, change),
        }
    )
    before_all.append(float(before[0, 0]))
    after_all.append([float(value[0, 0]) for value in after])

original = make_batch([lora], own_spec, torch.float64).to(dtype=dtype)
R = sample_for(original, group, condition, torch.Generator().manual_seed(state.draws - 1))
turned = act(R, original)


def factor_change(side: str) -> float:
    pairs = [torch.cat([t.flatten() for t in getattr(batch, side)]) for batch in (turned, original)]
    return relative_change(*pairs)


with st.container(horizontal=True, gap="large"):
    st.metric("κ(R)", f"{torch.linalg.cond(R[0][0, 0]).item():.4g}")
    st.metric("U moved by", f"{factor_change('U'):.1%}")
    st.metric("V moved by", f"{factor_change('V'):.1%}")
    st.metric("ΔW moved by", f"{product_change(turned, original):.1e}", help=f"Relative; zero up to rounding in {dtype_name}.")

st.subheader("Predictions")
table = pd.DataFrame(rows)
st.dataframe(
    table, hide_index=True, key="moves", column_config={"relative change": st.column_config.NumberColumn(format="scientific")} | {
        name: st.column_config.NumberColumn(format="%.6g") for name in ("before R", "after R")
    },
)  # fmt: skip
units = list(dict.fromkeys(row["predicts"] for row in rows))
for unit in units:
    members = [i for i, row in enumerate(rows) if row["predicts"] == unit]
    figure = plots.prediction_moves([rows[i]["model"] for i in members], [before_all[i] for i in members], [after_all[i] for i in members], unit)
    st.plotly_chart(figure, key=f"moves_{unit}", alt="Each model's prediction before and after R")
st.caption("One draw of R so far." if state.draws == 1 else f"{state.draws} draws of R so far.")

st.subheader("One module, before and after")
module = st.selectbox("Module", own_spec.modules, format_func=lambda m: f"{m.name}  ({m.n} × {m.m})", key="module")
position = own_spec.modules.index(module)
g, place = next((g, indices.index(position)) for g, (_, indices) in enumerate(own_spec.groups) if position in indices)


def corner(batch: Batch) -> dict[str, np.ndarray]:
    u, v = batch.U[g][0, place, :WIDTH_LIMIT].double(), batch.V[g][0, place, :WIDTH_LIMIT].double()
    return {"U": u.numpy(), "V": v.numpy(), "ΔW = U Vᵀ": (u @ v.mT).numpy()}


st.plotly_chart(plots.factor_heatmaps(corner(original), corner(turned)), key="heatmaps", alt="U, V and their product before and after R")
st.caption(f"The first {WIDTH_LIMIT} rows of U and V, and the corner of ΔW they make. Each pair shares one colour scale.")
