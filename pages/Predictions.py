"""What trained models say about every LoRA: beside each other, the truth and the controls; where they err; and of a
file dropped here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from lol_core.collections.zoo import Zoo, training_runs
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.formats import read
from lol_core.insight import plots
from lol_core.insight.novelty import Known
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import METRIC_TITLES, calibration, error_slices
from lol_core.learning.leaderboard import disagreement, verdict, verdicts
from lol_core.learning.parts import parts_here
from lol_core.learning.tasks import Binary, Multiclass, Regression, class_name
from ui.figures import figure
from ui.frame import frame, need, page_link
from ui.keys import key
from ui.points import walk_points
from ui.scores import show_leaderboard
from ui.selection import marked, offer, select, selected, visible
from ui.state import checkpoints, load_checkpoint

EXTREMES = 20
zoo = frame("Predictions")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
models = checkpoints(zoo)
if not models:
    st.info("No model has been trained on this collection yet.", icon=":material/arrow_forward:")
    page_link("pages/Train.py", "Train one", ":material/model_training:")
    st.caption("Or open one that was trained on another collection, on the page Home.")
    st.stop()


@st.cache_data(max_entries=16, show_spinner="Predicting every LoRA …")
def predictions_of(
    folder: str, created: str, fingerprint: str, _model: Checkpoint, _zoo: Zoo
) -> tuple[pd.DataFrame, dict[str, str]]:
    return _model.predict_zoo(_zoo)


@st.cache_resource(max_entries=8, show_spinner="Reading what the model was trained on …")
def known_to(folder: str, created: str, fingerprint: str, _model: Checkpoint, _zoo: Zoo) -> Known:
    return Known.of(_model, _zoo)


@st.cache_data(max_entries=8, show_spinner="Looking for LoRAs unlike those it was trained on …")
def strange(
    folder: str, created: str, fingerprint: str, ids: tuple[str, ...], _known: Known, _zoo: Zoo
) -> pd.DataFrame:
    parts = [_known.strangeness([_zoo.load(id) for id in ids[start : start + 64]]) for start in range(0, len(ids), 64)]
    return pd.concat(parts, ignore_index=True).set_index(pd.Index(ids))


loaded: dict[str, Checkpoint] = {}
for name, folder in models.items():
    try:
        loaded[name] = load_checkpoint(folder)
    except LoLError as error:
        st.caption(str(error))
trained_here = [model for model in loaded.values() if parts_here(model, zoo)]
if len(trained_here) > 1:
    st.subheader("Leaderboard")
    show_leaderboard(trained_here)
    st.caption(
        "Seeds of one model together; each seed has its own split. Margin: test score less that of the best control on"
        " the same splits."
    )

title = st.selectbox("Model", list(models), key=key("model"), bind="query-params")
need(title, "Choose a model.")
try:
    model = load_checkpoint(models[title])
except LoLError as error:
    st.error(str(error))
    st.stop()
for note in model.compare(zoo):
    st.warning(note)

predicted, refused = predictions_of(str(models[title]), model.created, zoo.fingerprint, model, zoo)
need(
    len(predicted), "This model can read none of these LoRAs: they belong to another base model or hold other modules."
)
part_of = parts_here(model, zoo)
at_home = bool(part_of)
parts = pd.Series([part_of.get(id, "new") for id in predicted.index], index=predicted.index, name="part")
task = model.task
offer(zoo, f"predictions of {title}", predicted.add_prefix("predicted "))

if at_home:
    st.subheader("Scores")
    names = list(model.metrics["test"])
    rows = {f"{part}": values for part, values in model.metrics.items()} | {
        f"test, control: {name}": values for name, values in model.controls.items()
    }
    scores = pd.DataFrame(
        {METRIC_TITLES[name]: {part: values.get(name) for part, values in rows.items()} for name in names}
    )
    st.dataframe(scores.style.format("{:.4g}", na_rep="–"), key=key("scores"))
    for given in verdicts(model):
        mark = "check_circle" if given.better else "warning"
        st.markdown(f":material/{mark}: On the test part it is **{given.sentence}**. {given.evidence}.")
    if model.interval:
        n_test = len(model.split["test"])
        st.caption(
            f"95 % bootstrap interval of the headline test score over {n_test} LoRAs: {model.interval[0]:.3f} –"
            f" {model.interval[1]:.3f}."
        )
    if model.metrics["test"].by_target:
        with st.expander("Per label, on the test part", key=key("per_label")):
            per_label = {
                t: {METRIC_TITLES[n]: own[n] for n in names} for t, own in model.metrics["test"].by_target.items()
            }
            st.dataframe(pd.DataFrame(per_label).T.style.format("{:.4g}", na_rep="–"))

target = st.selectbox("Label", task.targets, key=key("label")) if len(task.targets) > 1 else task.targets[0]
known = zoo.labels[target] if target in zoo.labels.columns else pd.Series(index=zoo.ids, dtype=float)
truth = known.reindex(predicted.index)
frame_ = pd.DataFrame(
    {"name": [zoo.names[id] for id in predicted.index], "part": parts, "true": truth, "predicted": predicted[target]}
)


def wrongness(rows: pd.DataFrame) -> pd.Series:
    """How wrong each prediction is: predicted − true; for classes 1 where the class is another."""
    if isinstance(task, Multiclass):
        return (rows["true"].map(class_name) != rows["predicted"]).astype(float)
    return rows["predicted"] - rows["true"].astype(float)


def take_selection() -> None:
    marked(zoo, "scatter")


labelled = bool(truth.notna().any())
if labelled:
    offer(zoo, f"errors of {title}", wrongness(frame_.dropna(subset=["true"])).rename("error").to_frame())


st.subheader(f"{target}: predicted against true" if labelled else f"{target}, predicted")
options = [part for part in ("test", "validation", "train", "new") if (parts == part).any()]
chosen = (
    st.segmented_control("Show", options, selection_mode="multi", default=options[:1], key=key("parts"))
    if len(options) > 1
    else options
)
shown = frame_[frame_["part"].isin(chosen or options) & frame_.index.isin(visible(zoo))]
compared = shown.dropna(subset=["true"])
if not len(compared):
    st.caption(f"These LoRAs have no label {target!r} to compare with; the table below holds the predictions.")
elif isinstance(task, Multiclass):
    counts = task.confusion(zoo.labels.loc[compared.index], predicted.loc[compared.index].iloc[:, 1:].to_numpy())
    figure(plots.confusion_heatmap(counts), "confusion", "Confusion matrix, true classes in rows", counts)
else:
    scatter = plots.predicted_against_true(compared, target, selected(zoo))
    figure(
        scatter,
        "scatter",
        "Predicted against true values",
        compared,
        on_select=take_selection,
        selection_mode=("points", "box", "lasso"),
    )
if not isinstance(task, Multiclass):
    ordered = shown[shown["part"] != "train"].sort_values("predicted", ascending=False)
    with st.container(horizontal=True):
        for name, most in (("highest", ordered.head(EXTREMES)), ("lowest", ordered.tail(EXTREMES))):
            text = f"Select the {len(most)} {name} predicted"
            st.button(
                text,
                icon=":material/select_all:",
                on_click=select,
                args=(zoo, list(most.index)),
                key=key(f"select_{name}"),
            )

if len(compared):
    errors = wrongness(compared)
    residual, calibrated, worst, others = st.tabs(
        [
            "Residuals" if isinstance(task, Regression) else "Confusion",
            "Calibration",
            "Where it errs",
            "Where models disagree",
        ]
    )
    with residual:
        if isinstance(task, Regression):
            figure(
                plots.residuals(compared, target),
                "residuals",
                "Predicted minus true values",
                compared.assign(residual=errors),
            )
        elif isinstance(task, Binary):
            counts = pd.crosstab(
                compared["true"].astype(int).map(["no", "yes"].__getitem__),
                (compared["predicted"] > 0.5).map({False: "no", True: "yes"}),
            )
            figure(
                plots.confusion_heatmap(counts.rename_axis(columns=None)),
                "confusion",
                f"{target}, true in rows, predicted in columns",
                counts,
            )
        else:
            st.caption("The confusion matrix stands above.")
    with calibrated:
        if isinstance(task, Multiclass):
            chances = predicted.loc[compared.index].iloc[:, 1:]
            bins = calibration(
                chances.max(axis=1), (compared["true"].map(class_name) == compared["predicted"]).astype(float)
            )
            figure(
                plots.calibration_curve(bins, "the predicted class", True),
                "calibration",
                "Share of right classes against the probability given",
                bins,
            )
        else:
            bins = calibration(compared["predicted"], compared["true"])
            figure(
                plots.calibration_curve(bins, target, isinstance(task, Binary)),
                "calibration",
                "Mean truth against mean prediction, in bins",
                bins,
            )
        st.caption(
            f"{len(compared)} LoRAs in {len(bins)} bins of equal number; bars: one standard error of the mean truth."
        )
    with worst:
        slices = error_slices(errors, zoo.labels.drop(columns=list(task.targets), errors="ignore"))
        if slices.empty:
            st.info("There is no other label to slice these LoRAs by, or too few of them.")
        else:
            bar = st.column_config.ProgressColumn(min_value=0, max_value=float(slices["ratio"].max()), format="%.2f ×")
            columns = {
                "ratio": bar,
                "p": st.column_config.NumberColumn(format="%.2g"),
                "mean error": st.column_config.NumberColumn(format="%.4g"),
            }
            st.dataframe(slices.head(15), hide_index=True, key=key("slices"), column_config=columns)
            st.caption(
                f"Mean error of all: {errors.abs().mean():.4g}. p: rank-sum test of a part against the rest, not"
                " corrected for their number."
            )
    with others:
        rivals = {
            name: other
            for name, other in loaded.items()
            if target in other.task.targets and type(other.task) is type(task) and not isinstance(task, Multiclass)
        }
        if len(rivals) < 2:
            st.info(
                f"Train a second model, or a second seed, on {target} to see where they disagree.",
                icon=":material/arrow_forward:",
            )
        else:
            told = {
                name: predictions_of(str(models[name]), other.created, zoo.fingerprint, other, zoo)[0][target]
                for name, other in rivals.items()
            }
            apart = disagreement(told).reindex(columns=[*told, "spread"])
            apart.insert(0, "true", known.reindex(apart.index))
            apart.insert(0, "name", [zoo.names[id] for id in apart.index])
            st.dataframe(apart.head(50), hide_index=True, key=key("apart"))
            correlation = float(
                np.corrcoef(np.stack([told[name].reindex(apart.index).to_numpy(float) for name in list(told)[:2]]))[
                    0, 1
                ]
            )
            st.caption(f"Correlation of the first two: {correlation:.3f}.")
            furthest = list(apart.index[:EXTREMES])
            st.button(
                f"Select the {len(furthest)} they disagree on most",
                icon=":material/select_all:",
                on_click=select,
                args=(zoo, furthest),
                key=key("select_apart"),
            )

runs = training_runs(zoo.names)
runs = runs[runs.index.isin(frame_.index)]
if len(runs) and not isinstance(task, Multiclass):
    st.subheader("Checkpoints of one training run")
    best = runs.join(frame_[["name", "predicted", "true"]])
    highest = best.loc[best.groupby("run", sort=False)["predicted"].idxmax()].set_index("run")
    highest.insert(0, "checkpoints", best.groupby("run").size())
    shown_runs = highest.drop(columns="true").rename(columns={"name": "highest predicted"})
    st.dataframe(shown_runs, key=key("runs"))
    one = st.selectbox("Run", list(highest.index), key=key("run"), bind="query-params")
    figure(
        plots.along_run(best[best["run"] == one], f"predicted {target}"),
        "along_run",
        f"Predicted {target} along the run",
        best[best["run"] == one],
    )

st.subheader("Every LoRA")
among = [id for id in visible(zoo) if id in predicted.index]
if len(among) < len(predicted):
    st.caption(f"The {len(among):,} selected of {len(predicted):,}.")
table = predicted.loc[among].copy()
table.insert(0, "part", parts)
table.insert(0, "name", frame_["name"])
if isinstance(task, Multiclass):
    table.insert(2, f"{target} (true)", truth.map(class_name, na_action="ignore"))
else:
    for i, name in enumerate(task.targets):
        if name in zoo.labels.columns:
            table.insert(2 + 2 * i, f"{name} (true)", zoo.labels[name].reindex(table.index))
    if isinstance(task, Regression) and labelled:
        table["error"] = predicted[target] - truth.astype(float)
if at_home and st.toggle("Mark LoRAs unlike those it was trained on", key=key("mark_strange")):
    try:
        known_loras = known_to(str(models[title]), model.created, zoo.fingerprint, model, zoo)
        marks = strange(str(models[title]), model.created, zoo.fingerprint, tuple(predicted.index), known_loras, zoo)
    except LoLError as error:
        st.error(str(error))
    else:
        table.insert(2, "outside", marks["outside"].reindex(table.index))
        outside = list(table.index[table["outside"]])
        st.caption(
            f"{len(outside)} of {len(table):,} lie farther from the training LoRAs than 99 % of these from each other,"
            " in its latent or in their norms."
        )
        if outside:
            st.button(
                "Select those outside",
                icon=":material/select_all:",
                on_click=select,
                args=(zoo, outside),
                key=key("select_outside"),
            )
st.dataframe(table, hide_index=True, height=420, key=key("table"))
st.download_button(
    "Download as CSV",
    table.rename_axis("lora").to_csv(),
    f"predictions-{Path(models[title]).name}.csv",
    "text/csv",
    icon=":material/download:",
)
if refused:
    with st.expander(f"{len(refused)} LoRAs have no prediction", icon=":material/block:", key=key("no_prediction")):
        st.dataframe(pd.DataFrame([{"path": id, "reason": reason} for id, reason in refused.items()]), hide_index=True)

st.subheader("A file of yours")
dropped = st.file_uploader(
    "Drop a LoRA file; for PEFT its adapter_config.json beside it",
    accept_multiple_files=True,
    key=key("dropped"),
    help="It is read and forgotten, not stored.",
)


def of_dropped(lora: LoRA) -> pd.DataFrame:
    """What every model says of it, and whether it is like what the model knows."""
    rows: list[dict[str, Any]] = []
    for name, other in loaded.items():
        row: dict[str, Any] = {"model": name}
        try:
            if problems := other.spec.misfits(lora):
                rows.append(row | {"remark": " ".join(problems)})
                continue
            said = other.task.frame(other.predict([lora]), ["dropped"]).iloc[0]
            row |= {"label": other.task.targets[0], "predicted": said.iloc[0], "test score": verdict(other).sentence}
            if parts_here(other, zoo):
                mark = (
                    known_to(str(models[name]), other.created, zoo.fingerprint, other, zoo).strangeness([lora]).iloc[0]
                )
                far = (
                    "unlike the LoRAs it was trained on: take it as a guess"
                    if mark["outside"]
                    else "like the LoRAs it was trained on"
                )
                row["remark"] = (
                    f"{far} (farther than {mark['latent']:.0%} of them in its latent, {mark['norms']:.0%} in norms)"
                )
            rows += (
                [row | {"label": label, "predicted": value} for label, value in said.items()]
                if not isinstance(other.task, Multiclass)
                else [row]
            )
        except LoLError as error:
            rows.append(row | {"remark": str(error)})
    return pd.DataFrame(rows)


if dropped:
    with tempfile.TemporaryDirectory() as place:
        for file in dropped:
            (Path(place) / Path(file.name).name).write_bytes(file.getvalue())
        weights = [path for path in sorted(Path(place).iterdir()) if path.suffix != ".json"]
        for path in weights:
            try:
                lora = read(Path(place) if path.name.startswith("adapter_model") else path)
                lora.check_finite()
            except LoLError as error:
                st.error(str(error).replace(f"{place}/", ""), icon=":material/broken_image:")
                continue
            st.markdown(
                f"**{path.name}**: {lora.dialect}, {len(lora.layers)} modules, rank {', '.join(map(str, lora.ranks))}"
            )
            st.dataframe(
                of_dropped(lora).astype({"predicted": str}, errors="ignore"),
                hide_index=True,
                key=key(f"dropped_{path.name}"),
            )
        if not weights:
            st.warning("There is no weights file among these. Drop the .safetensors file as well.")

walk_points(zoo, list(predicted.index))
