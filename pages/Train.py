"""Train LoL models on the open collection: choose what to predict, watch, stop, resume, keep."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.learning.checkpoint import Checkpoint, TrainingConfig
from lol_core.learning.devices import devices
from lol_core.learning.evaluation import METRIC_TITLES
from lol_core.learning.leaderboard import verdict, verdicts
from lol_core.learning.models import MODELS
from lol_core.learning.models.layers import NONLINEARITIES
from lol_core.learning.parts import parts_here
from lol_core.learning.tasks import kind_of
from lol_core.learning.training import Plan, plan
from lol_core.learning.verdict import judge
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.jobs import FoldsJob, Run, TrainingJob
from ui.keys import key
from ui.points import walk_points
from ui.progress import follow, show
from ui.scores import show_leaderboard
from ui.state import checkpoints, load_checkpoint, runs_folder, session

PAPER = "https://arxiv.org/abs/2410.04207"
zoo = frame("Train")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
need(
    zoo.labels.shape[1],
    "This collection has no labels, so there is nothing to predict. Put a `labels.csv` beside the files, or name one"
    " under *Labels file* in the sidebar: one column with file names, and a column for each label.",
)
state = session()

preferred = [column for column in ("validation_loss", "accuracy", "clip_score") if column in zoo.labels.columns]
left, right = st.columns([3, 2])
targets = left.multiselect(
    "Predict",
    list(zoo.labels.columns),
    default=preferred[:1] or list(zoo.labels.columns[:1]),
    key=key("targets"),
    bind="query-params",
    help="One or many columns of one kind. Numbers: regression. 0 and 1: yes or no. Text: one of several classes.",
)
names = right.multiselect(
    "Models",
    list(MODELS),
    default=["gl_net"],
    format_func=lambda name: MODELS[name].title,
    key=key("models"),
    bind="query-params",
)
if targets:
    left.caption(
        ", ".join(f"{t}: {kind_of(zoo.labels[t]).kind}, {zoo.labels[t].notna().sum()} labelled" for t in targets)
    )

with st.expander("Settings", icon=":material/tune:", key=key("settings")):
    a, b, c, d = st.columns(4)
    seeds = a.number_input(
        "Seeds",
        1,
        10,
        1,
        key=key("seeds"),
        help="Each model is trained once for every seed: another split, another initialisation.",
    )
    first_seed = a.number_input("First seed", 0, 10_000, 0, key=key("first_seed"))
    folds = a.number_input("Folds of the cross-validation", 2, 20, 5, key=key("folds"))
    epochs = b.number_input("Epochs, at most", 1, 2000, 60, key=key("epochs"))
    patience = b.number_input(
        "Patience",
        0,
        2000,
        15,
        key=key("patience"),
        help="Stop after so many epochs without a better validation loss; 0: never.",
    )
    learning_rate = c.number_input("Learning rate", 1e-6, 1.0, 1e-3, format="%g", key=key("learning_rate"))
    weight_decay = c.number_input("Weight decay", 0.0, 10.0, 0.0, format="%g", key=key("weight_decay"))
    batch_size = d.number_input("Batch size", 1, 1024, 32, key=key("batch_size"))
    device = d.selectbox("Device", ["auto", *devices()], key=key("device"))
    a, b, c, d = st.columns(4)
    width = a.number_input("Width of the head", 4, 1024, 64, key=key("width"))
    depth = a.number_input("Hidden layers of the head", 1, 8, 2, key=key("depth"))
    equivariant_width = b.number_input("GL-net: equivariant width", 1, 256, 16, key=key("equivariant_width"))
    equivariant_layers = b.number_input("GL-net: equivariant layers", 1, 6, 1, key=key("equivariant_layers"))
    dropout = c.number_input("Dropout in the head", 0.0, 0.9, 0.0, step=0.05, key=key("dropout"))
    sigma = c.selectbox(
        "GL-net: σ of the nonlinearity",
        list(NONLINEARITIES),
        key=key("sigma"),
        help=f"[Equation (6)]({PAPER}); used between equivariant layers.",
    )
    group = d.selectbox(
        "Keep together in the split",
        [None, *zoo.labels.columns],
        format_func=lambda g: g or "(nothing)",
        key=key("group"),
    )
    normalize = d.toggle(
        "Normalise inputs",
        False,
        key=key("normalize"),
        help=f"Divide each module's U and V by its training standard deviation. [The paper]({PAPER}) does not.",
    )
    mean_products = d.toggle(
        "Mean of products",
        False,
        key=key("mean_products"),
        help=f"GL-net as the paper has it for CLIP scores ([appendix D.1.1]({PAPER})).",
    )
    class_weights = d.toggle("Class weights", False, key=key("class_weights"))
    shuffled = d.toggle(
        "Shuffled control", False, key=key("shuffled"), help="Also fit each model to permuted labels. Doubles the time."
    )


def make_config(name: str, seed: int) -> TrainingConfig:
    shape = MODELS[name].configure(
        width=width,
        depth=depth,
        dropout=dropout,
        normalize=normalize,
        equivariant_width=equivariant_width,
        equivariant_layers=equivariant_layers,
        sigma=sigma,
        mean_products=mean_products,
    )
    return TrainingConfig(
        model=name,
        model_config=shape,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        class_weights=class_weights,
        seed=seed,
        device=device,
        group_column=group,
        shuffled_control=shuffled,
    )


def make_run(name: str, seed: int) -> Run:
    """One model at one seed, planned. Raises LoLError with what is wrong."""
    config = make_config(name, seed)
    out = runs_folder(zoo) / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}-seed{seed}"
    return Run(f"{MODELS[name].title}, seed {seed}", plan(zoo, targets, config), config, out)


def describe(planned: Plan) -> None:
    parts = ", ".join(f"{len(ids)} {part}" for part, ids in planned.split.items())
    st.caption(f"{planned.task.kind}: {parts} LoRAs; {len(planned.spec.modules)} modules, rank {planned.spec.rank}.")
    if planned.left_out_modules:
        few = ", ".join(planned.left_out_modules[:3])
        st.caption(f"{len(planned.left_out_modules)} modules are left out because not every LoRA has them: {few} …")
    if planned.left_out:
        st.caption(f"{len(planned.left_out)} LoRAs have no usable label and are left out.")


def results_table(models: list[Checkpoint]) -> pd.DataFrame:
    """One row per model with its test scores, its interval and its controls."""
    rows = []
    for model in models:
        name = model.task.headline
        test = model.metrics["test"]
        row = {
            "model": model.model.title,
            "seed": model.config.seed,
            "targets": ", ".join(model.task.targets),
            "metric": METRIC_TITLES[name],
            "test": test[name],
            "verdict": verdict(model).sentence,
        }
        row["95 % interval"] = f"{model.interval[0]:.3f} – {model.interval[1]:.3f}" if model.interval else ""
        row["training"] = model.metrics["train"][name]
        row |= {f"control: {control}": values[name] for control, values in model.controls.items()}
        row |= {METRIC_TITLES[metric]: test[metric] for metric in model.task.further}
        rows.append(
            row | {"epochs": len(model.history), "parameters": model.model.n_parameters, "finished": model.finished}
        )
    return pd.DataFrame(rows)


ready = False
try:
    need(targets and names, "Choose at least one target and one model.")
    firsts = [make_run(name, first_seed) for name in names]
    describe(firsts[0].plan)
    ready = True
except LoLError as problem:
    st.error(str(problem), icon=":material/error:")

busy = state.job is not None and state.job.running
start, stop, cross, _ = st.columns([2, 2, 3, 5])
if start.button("Train", type="primary", icon=":material/play_arrow:", disabled=busy or not ready, width="stretch"):
    state.job = TrainingJob(
        zoo, [make_run(name, seed) for name in names for seed in range(first_seed, first_seed + seeds)]
    )
    state.job.start()
    st.rerun()
if stop.button("Stop", icon=":material/stop:", disabled=not busy, width="stretch") and state.job is not None:
    state.job.stop()
words = (
    "Predicts every LoRA by models that have not seen it, and compares with the controls LoRA by LoRA. As long as that"
    " many trainings."
)
validating = state.validation is not None and state.validation.running
pressed = cross.button(
    "Cross-validate", icon=":material/splitscreen:", disabled=validating or not ready, width="stretch", help=words
)
if pressed:
    state.validation = FoldsJob(
        zoo, tuple(targets), {MODELS[name].title: make_config(name, first_seed) for name in names}, int(folds)
    )
    state.validation.start()
    st.rerun()


def show_validation(job: FoldsJob) -> None:
    """The scores of held-out predictions beside those of the controls, and how sure their difference is."""
    follow(job, "stop_folds")
    if job.error:
        st.error(job.error)
    if job.stopping and not job.running:
        st.caption("Cross-validation was stopped; the models it had finished are shown.")
    for title, validated in job.found.items():
        found = validated.folds
        metric = found.task.ranked
        rows = {
            title if name == "model" else f"control: {name}": {
                METRIC_TITLES[key]: f"{mean:.3f} ± {std:.3f}" if np.isfinite(mean) else "–"
                for key, (mean, std) in values.items()
            }
            for name, values in validated.scores.items()
        }
        st.markdown(
            f"**{title} → {', '.join(job.targets)}**, {len(set(found.fold))} folds, mean ± standard deviation over them"
        )
        st.dataframe(pd.DataFrame(rows).T, key=key(f"folds {title}"))
        given = judge(metric, validated.differences)
        st.markdown(
            f":material/{'check_circle' if given.better else 'warning'}: On {len(found.truth)} held-out LoRAs it is"
            f" **{given.sentence}**."
        )
        for control, gap in validated.differences.items():
            st.caption(judge(metric, {control: gap}).evidence)


if state.validation is not None and state.validation.zoo is zoo:
    show_validation(state.validation)


@st.fragment(run_every=0.7 if busy else None)
def watch() -> None:
    job = state.job
    if job is None:
        return
    if job.running:
        show(job)
    elif busy:
        st.rerun(scope="app")
    histories = {run.title: run.progress.history for run in job.runs if run.progress.history}
    if histories:
        figure(plots.learning_curves(histories), "curves", "Loss and validation score against epochs")
    for run in job.runs:
        if run.error:
            st.error(f"{run.title}: {run.error}")
        elif job.running and not run.ended:
            st.caption(f"{run.title}: {run.progress.message}")
    done = [run.checkpoint for run in job.runs if run.checkpoint is not None]
    if done:
        st.dataframe(results_table(done), hide_index=True, key=key("results"))
        for model in done:
            for given in verdicts(model):
                st.markdown(
                    f":material/{'check_circle' if given.better else 'warning'}: {model.title} is **{given.sentence}**"
                    f" on its {len(model.split['test'])} test LoRAs. {given.evidence}."
                )
        for model in done:
            for id, reason in list(model.left_out.items())[:3]:
                st.caption(f"{model.model.title}: left out {id}: {reason}")


watch()
walk_points(zoo)

saved = checkpoints(zoo)
st.subheader("Trained models of this collection")
need(saved, "None yet. Choose a target and press **Train**; on the sample zoo GL-net takes seconds.")
kept: list[tuple[str, Path, Checkpoint]] = []
for title, folder in saved.items():
    try:
        kept.append((title, folder, load_checkpoint(folder)))
    except LoLError as problem:
        st.caption(str(problem))
together, single, curves = st.tabs(["Seeds together", "Every model", "Curves"])
with together:
    show_leaderboard([model for *_, model in kept if parts_here(model, zoo)])
with single:
    st.dataframe(results_table([model for *_, model in kept]), hide_index=True, key=key("saved"))
with curves:
    compared = st.multiselect(
        "Compare", [title for title, *_ in kept], default=[title for title, *_ in kept][:3], key=key("compared")
    )
    if histories := {title: model.history for title, _, model in kept if title in compared and model.history}:
        figure(
            plots.learning_curves(histories), "kept_curves", "Loss and validation score of kept models against epochs"
        )
choice, resume, delete, predictions = st.columns([4, 2, 2, 3], vertical_alignment="bottom")
picked = choice.selectbox(
    "Model", [title for title, *_ in kept]
)  # without a key: a new list selects its first, the newest
folder, model = next((folder, model) for title, folder, model in kept if title == picked)
with predictions:
    page_link("pages/Predictions.py", "Look at its predictions", ":material/insights:", model=picked)
can_resume = not model.finished and not busy
if resume.button(
    "Resume",
    disabled=not can_resume,
    icon=":material/resume:",
    width="stretch",
    help="Goes on with a training that was stopped.",
):
    planned = Plan.of(model)
    state.job = TrainingJob(
        zoo, [Run(f"{model.model.title}, seed {model.config.seed}", planned, model.config, folder, resume=True)]
    )
    state.job.start()
    st.rerun()
ours = folder.parent == runs_folder(zoo)
with delete.popover("Remove", icon=":material/delete:", disabled=busy, width="stretch"):
    st.write(
        "Delete this model from the disk?" if ours else f"Take it off the list? The folder {folder} stays as it is."
    )
    if st.button("Delete it" if ours else "Take it off the list", type="primary"):
        if ours:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            state.extra_checkpoints.remove(str(folder))
        st.rerun()
