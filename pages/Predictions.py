"""What trained models say about every LoRA: beside each other, the truth and the controls; where they err; and of a
file dropped here.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lol_core.collections.names import counted
from lol_core.insight import plots
from lol_core.insight.predictions import NOT_KNOWN, apart, opinions, rivals
from lol_core.insight.scores import parts_table
from lol_core.learning.known import OUTSIDE
from lol_core.learning.leaderboard import verdicts
from lol_core.learning.metrics import METRIC_TITLES
from lol_core.learning.parts import parts_here
from ui.choice import look_at_link
from ui.dropped import dropped_loras
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.keys import key
from ui.plain import plain
from ui.points import walk_points
from ui.predicting import answers_of, predictions_of
from ui.scores import show_leaderboard, show_slices, show_verdict
from ui.selection import marked, offer, select_button, selected, visible
from ui.state import checkpoints, load_or_stop, loaded_checkpoints
from ui.tables import download, numbers, show

EXTREMES = 20
source = frame("Predictions", loras=True)
folders, models = checkpoints(source), loaded_checkpoints(source)
if not folders:
    st.info("No model has been trained on this collection yet.", icon=":material/arrow_forward:")
    page_link("pages/Train.py", "Train one", ":material/model_training:")
    st.caption("Or open one that was trained on another collection, on the page Home.")
    st.stop()
at_home = {title for title, model in models.items() if parts_here(model, source)}
if len(at_home) > 1:
    st.subheader("Leaderboard")
    show_leaderboard([model for title, model in models.items() if title in at_home])
    st.caption(
        "Seeds of one model and setting together; each seed has its own split. Margin: test score less that of the best"
        " control on the same splits."
    )
look_at_link("model", "model", folders)
title = st.selectbox("Model", list(folders), key=key("model"), bind="query-params")
model, folder = load_or_stop(folders[title]), folders[title]
for note in model.compare(source):
    st.warning(note)
if (answers := answers_of(source, folder)) is None:
    st.stop()
values = answers.values
need(len(values), "This model can read none of these LoRAs: they belong to another base model or hold other modules.")
offer(source, f"predictions of {title}", values.add_prefix("predicted "))
if title in at_home:
    st.subheader("Scores")
    test = model.metrics["test"]
    scores = parts_table(model)
    show(scores, "scores", index=True, column_config=numbers("%.4g", scores.columns))
    for verdict in verdicts(model):
        show_verdict(verdict, f"On the test part it is **{verdict.sentence}**. {verdict.evidence}.")
    if model.interval:
        low, high = model.interval
        text = f"95 % bootstrap interval of the headline test score over {len(model.split['test'])} LoRAs"
        st.caption(f"{text}: {low:.3f} – {high:.3f}.")
    if test.by_target:
        with st.expander("Per label, on the test part", key=key("per_label")):
            table = pd.DataFrame(test.by_target).T.rename(columns=METRIC_TITLES)
            show(table, "label_scores", index=True, column_config=numbers("%.4g", table.columns))

targets = model.task.targets
target = st.selectbox("Label", targets, key=key("label")) if len(targets) > 1 else targets[0]
predictions = predictions_of(source, model, answers, target)
labelled, regression = predictions.labelled, not model.task.probabilities
if len(labelled):
    offer(source, f"errors of {title}", predictions.errors(labelled).to_frame())
st.subheader(f"{plain(target)}: predicted against true" if len(labelled) else f"{plain(target)}, predicted")
parts = predictions.parts
chosen = parts
if len(parts) > 1:
    chosen = st.segmented_control("Show", parts, selection_mode="multi", default=parts[:1], key=key("parts")) or parts
seen = visible(source)
table = predictions.table if len(seen) == len(source) else predictions.table[predictions.table.index.isin(seen)]
shown = table if len(chosen) == len(parts) else table[table["part"].isin(chosen)]
compared = shown.dropna(subset=["true"])
if not len(compared):
    st.caption(f"These LoRAs have no label {target!r} to compare with; the table below holds the predictions.")
elif predictions.classes:
    counts = predictions.confusion(compared)
    figure(plots.confusion_heatmap(counts), "confusion", "Confusion matrix, true classes in rows", counts)
else:
    figure(
        plots.predicted_against_true(compared, target, selected(source)),
        "scatter",
        "Predicted against true values",
        compared,
        on_select=lambda: marked(source, "scatter"),
        selection_mode=("points", "box", "lasso"),
    )
if not predictions.classes:
    with st.container(horizontal=True):
        for end, ids in predictions.extremes(shown, EXTREMES).items():
            select_button(source, ids, f"Select the {len(ids)} {end} predicted", f"select_{end}")


def show_disagreement() -> None:
    """The LoRAs of which models of the same target say different things."""
    titles = rivals(models, predictions)
    if len(titles) < 2:
        text = f"Train a second model, or a second seed, on {target} to see where they disagree."
        st.info(text, icon=":material/arrow_forward:")
    else:
        each = {}
        for other in titles:
            if (said := answers_of(source, folders[other])) is None:
                return
            each[other] = said.values[target]
        table, correlation = apart(each, source, target)
        show(table.head(50), "apart")
        st.caption(f"Correlation of the first two: {correlation:.3f}.")
        furthest = list(table.index[:EXTREMES])
        select_button(source, furthest, f"Select the {len(furthest)} they disagree on most", "select_apart")


def show_residuals(errors: pd.Series) -> None:
    """How far off each is, or which class is taken for which."""
    if regression:
        chart, table = plots.residuals(compared, target), compared.assign(residual=errors)
        figure(chart, "residuals", "Predicted minus true values", table)
    elif predictions.classes:
        st.caption("The confusion matrix stands above.")
    else:
        counts, text = predictions.confusion(compared), f"{target}, true in rows, predicted in columns"
        figure(plots.confusion_heatmap(counts), "confusion", text, counts)


def show_calibration() -> None:
    """What is true of those of which about the same is predicted."""
    bins = predictions.calibration(compared)
    chart = plots.calibration_curve(bins, predictions.calibrated, predictions.probabilities)
    figure(chart, "calibration", "Mean truth against mean prediction, in bins", bins)
    text = "of equal number; bars: one standard error of the mean truth."
    st.caption(f"{counted(len(compared), 'LoRA')} in {counted(len(bins), 'bin')} {text}")


def show_errors() -> None:
    """Where the model errs, and where others disagree with it: of what can be looked at, what is looked at."""
    errors = predictions.errors(compared)
    shown = {
        "Residuals" if regression else "Confusion": lambda: show_residuals(errors),
        "Calibration": show_calibration,
        "Where it errs": lambda: show_slices(errors, source.labels.drop(columns=list(targets), errors="ignore")),
        "Where models disagree": show_disagreement,
    }
    for tab, draw in zip(st.tabs(list(shown), key=key("errors"), on_change="rerun"), shown.values(), strict=True):
        if tab.open:
            with tab:
                draw()


if len(compared):
    show_errors()
if not predictions.classes and len(predictions.runs[0]):
    steps, best = predictions.runs
    st.subheader("Checkpoints of one training run")
    show(best, "runs", index=True)
    run = st.selectbox("Run", list(best.index), key=key("run"), bind="query-params")
    of_run = steps[steps["run"] == run]
    text = f"Predicted {target} along the run"
    figure(plots.along_run(of_run, f"predicted {target}"), "along_run", text, of_run)

st.subheader("Every LoRA")
table = predictions.whole
if len(seen) < len(source):
    table = table.loc[table.index.intersection(seen, sort=False)]
    st.caption(f"The {len(table):,} selected of {len(values):,}.")
if model.known:
    strangers = table.index[table["outside"]].tolist()
    st.caption(
        f"{len(strangers):,} of {len(table):,} are **outside**: farther from the LoRAs that the model was trained on"
        f" than {OUTSIDE:.0%} of {model.known.others}, in its latent or in norms. What it says of them is a guess."
    )
    if strangers:
        select_button(source, strangers, "Select those outside", "select_outside")
else:
    st.caption(NOT_KNOWN)
show(table, "table", height=420)
download(table.rename_axis("lora"), f"predictions-{folder.name}", index=True)
if answers.refused:
    with st.expander(
        f"{len(answers.refused)} LoRAs have no prediction", icon=":material/block:", key=key("no_prediction")
    ):
        show(pd.DataFrame(answers.refused.items(), columns=["path", "reason"]), "reasons")

st.subheader("A file of yours")
for name, lora in dropped_loras().items():
    ranks = ", ".join(map(str, lora.ranks))
    st.markdown(f"**{plain(name)}**: {lora.dialect}, {len(lora.layers)} modules, rank {ranks}")
    show(opinions(models, lora), f"dropped_{name}")
walk_points(source, values.index.tolist())
