"""Train LoL models on the open collection: choose what to predict, watch, stop, resume, keep."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.scores import results_table, validation_table
from lol_core.learning.card import copies_told, runs_told
from lol_core.learning.leaderboard import verdicts
from lol_core.learning.models import MODELS
from lol_core.learning.parts import parts_here
from lol_core.learning.publishing import packed
from lol_core.learning.training import Plan
from lol_core.learning.verdict import judge
from ui import work
from ui.access import access
from ui.choice import PREFERRED, look_at_link
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.jobs import Job, running, sentence
from ui.keys import key
from ui.offered import offers
from ui.plain import plain
from ui.points import walk_points
from ui.progress import follow, show_progress
from ui.scores import show_leaderboard, show_verdict
from ui.state import checkpoints, loaded_checkpoints, runs_folder, session
from ui.tables import show
from ui.training import choose_some, choose_training, described, told
from ui.work import Run, Validation

LEFT_OUT = 3
"""LoRAs that are named as left out."""
source = frame("Train", loras=True)
if not source.labels.shape[1]:
    st.info(
        "This collection has no labels, so there is nothing to predict. Put a `labels.csv` beside the files, or name"
        " one under *Labels file* in the sidebar: one column with file names, and a column for each label.",
        icon=":material/arrow_forward:",
    )
    if offers(source):
        page_link("pages/Zoo.py", "See which labels the files offer", ":material/new_label:")
    st.stop()
state, columns = session(), list(source.labels.columns)
left, right = st.columns([3, 2])
first: list[str] | None = [column for column in PREFERRED if column in columns][:1] or columns[:1]
if (known := st.session_state.get(key("targets"))) and set(known).isdisjoint(columns):  # those of another collection
    st.session_state[key("targets")], first = first, None  # set, not forgotten: the browser shows what it had
look_at_link("targets", "label", columns)
look_at_link("models", "model", [MODELS[name].title for name in MODELS])
targets = left.multiselect(
    "Predict",
    columns,
    default=first,
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
left.caption(plain("; ".join(f"{target}: {told(source.labels[target])}" for target in targets)))
choice, ready = choose_training(source.labels, targets, names, choose_some(source)), False
if not (targets and names):
    st.info("Choose at least one target and one model.", icon=":material/arrow_forward:")
elif choice.problems:
    st.error("  \n".join(choice.problems), icon=":material/error:")
else:
    try:
        st.caption("  \n".join(map(plain, described(source, choice))))
        ready = True
    except LoLError as problem:
        st.error(plain(sentence(problem)), icon=":material/error:")

busy = running(state.training)
start, stop, cross, _ = st.columns([2, 2, 3, 5])
if start.button("Train", type="primary", icon=":material/play_arrow:", disabled=busy or not ready, width="stretch"):
    try:
        state.training = work.train_runs(source, choice.runs(source, choice.seeds))
    except LoLError as problem:  # what was planned before may not be possible any more
        st.error(plain(sentence(problem)), icon=":material/error:")
        st.stop()
    st.rerun()
if stop.button("Stop", icon=":material/stop:", disabled=not busy, width="stretch") and state.training is not None:
    state.training.stop()
if cross.button(
    "Cross-validate",
    icon=":material/splitscreen:",
    disabled=running(state.validation) or not ready,
    width="stretch",
    help="Predicts every LoRA by models that have not seen it, and compares with the controls LoRA by LoRA. As long as"
    " that many trainings.",
):
    state.validation = work.validate(source, choice.targets, choice.configs(), choice.folds)
    st.rerun()


def show_left_out(title: str, left_out: Mapping[str, str]) -> None:
    """LoRAs that took no part, and why."""
    for id, reason in list(left_out.items())[:LEFT_OUT]:
        st.caption(plain(f"{title}: left out {id}: {reason}"))
    if len(left_out) > LEFT_OUT:
        st.caption(f"… and {len(left_out) - LEFT_OUT:,} more.")


def show_validation(job: Job[Validation, None]) -> None:
    """The scores of held-out predictions beside those of the controls, and how sure their difference is."""
    follow(job, "stop_folds")
    if job.stopping and not job.running and job.subject.finished:
        st.caption("The models that it had finished are shown.")
    for title, validated in job.subject.finished.items():
        folds, predicts = validated.folds, ", ".join(job.subject.targets)
        count = len(set(folds.fold))
        st.markdown(f"**{title} → {plain(predicts)}**, {count} folds, mean ± standard deviation over them")
        show(validation_table(title, validated.scores), f"folds {title}", index=True)
        verdict = judge(folds.task.ranked, validated.differences)
        show_verdict(verdict, f"On {len(folds.truth)} held-out LoRAs it is **{verdict.sentence}**.")
        for control, gap in validated.differences.items():
            st.caption(judge(folds.task.ranked, {control: gap}).evidence)
        show_left_out(title, folds.left_out)


def show_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], name: str, alt: str) -> None:
    """How trainings went, by their titles; of one epoch, as where nothing is fitted, there is no curve."""
    curves = {title: rows for title, rows in histories.items() if len(rows) > 1}
    if curves:
        table = pd.concat([pd.DataFrame(rows).assign(model=title) for title, rows in curves.items()], ignore_index=True)
        figure(plots.learning_curves(curves), name, alt, table.set_index("model").reset_index())


def show_others() -> None:
    """The trainings of other tabs, each to be looked at, and stopped, in this one."""
    for number, other in enumerate(work.other_trainings(state.training)):
        line = st.container(horizontal=True, vertical_alignment="center")
        titles = [run.title for run in other.subject]
        more = f" and {len(titles) - 1:,} more" if len(titles) > 1 else ""
        line.caption(f"Another training runs or waits: {titles[0]}{more}.", width="content")
        if line.button("Show it here", icon=":material/visibility:", key=key(f"other_{number}")):
            state.training = other
            st.rerun()


@st.fragment(run_every=0.7 if busy else None)
def watch() -> None:
    """The trainings: their progress and curves, and what came out."""
    if (job := state.training) is None:
        return
    if any(run.out.parent != runs_folder(source) and not run.resume for run in job.subject):
        st.caption("This training is of another collection than the one that is open.")
    if job.error:
        st.error(job.error)
    if job.running:
        show_progress(job, left=len(job.subject) > 1)  # the epochs of one training tell when it ends
    elif busy:
        st.rerun(scope="app")
    histories = {run.title: run.progress.history for run in job.subject}
    show_curves(histories, "curves", "Loss and validation score against epochs")
    for run in job.subject:
        if run.error:
            st.error(f"{run.title}: {run.error}")
    if job.stopping and not job.running and not any(run.checkpoint or run.error for run in job.subject):
        st.caption("The training was stopped before it began.")
    if done := [run.checkpoint for run in job.subject if run.checkpoint is not None]:
        show(results_table(done), "results")
    for model in done:
        for verdict in verdicts(model):
            text = f"on its {len(model.split['test'])} test LoRAs. {verdict.evidence}."
            show_verdict(verdict, f"{plain(model.title)} is **{verdict.sentence}** {text}")
        for said in (*copies_told(model), *runs_told(model)):
            st.caption(plain(f"{model.model.title}: {said}"))
        show_left_out(model.model.title, model.left_out)


if state.validation is not None and state.validation.subject.fingerprint == source.fingerprint:
    show_validation(state.validation)
show_others()
watch()
walk_points(source)

folders, models = checkpoints(source), loaded_checkpoints(source)
st.subheader("Trained models of this collection")
need(models, "None yet. Choose a target and press **Train**; on the sample zoo GL-net takes seconds.")
together, single, curves = st.tabs(["Seeds together", "Every model", "Curves"])
with together:
    show_leaderboard([model for model in models.values() if parts_here(model, source)])
with single:
    show(results_table(list(models.values())), "saved")
with curves:
    compared = st.multiselect("Compare", list(models), default=list(models)[:3], key=key("compared"))
    histories = {title: models[title].history for title in compared}
    show_curves(histories, "kept_curves", "Loss and validation score of kept models against epochs")
place, resume, delete, last = st.columns([4, 2, 2, 3], vertical_alignment="bottom")
picked = place.selectbox("Model", list(models))  # without a key: a new list selects its first, the newest
folder, model = folders[picked], models[picked]
kept_here = folder.parent == runs_folder(source)
with last:
    if access().served:
        st.download_button(
            "Download",
            lambda: packed(folder),
            f"{folder.name}.zip",
            "application/zip",
            icon=":material/download:",
            width="stretch",
            key=key("download"),
            help="Unpacked, it opens on your own computer, in Python or on the page Home there.",
        )
    page_link("pages/Predictions.py", "Look at its predictions", ":material/insights:", model=picked)
if resume.button(
    "Resume",
    disabled=model.finished or busy or (access().served and not kept_here),
    icon=":material/resume:",
    width="stretch",
    help="Goes on with a training that was stopped.",
):
    title = f"{model.model.title}, seed {model.config.seed}"
    state.training = work.train_runs(source, [Run(title, Plan.of(model), model.config, folder, resume=True)])
    st.rerun()
opened_by_path = str(folder) in state.extra_checkpoints
with delete.popover(
    "Remove", icon=":material/delete:", disabled=busy or not (kept_here or opened_by_path), width="stretch"
):
    stays = f"Take it off the list? The folder {access().text(str(folder))} stays as it is."
    st.write("Delete this model from the disk?" if kept_here else stays)
    if st.button("Delete it" if kept_here else "Take it off the list", type="primary"):
        if kept_here:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            state.extra_checkpoints.remove(str(folder))
        st.rerun()
