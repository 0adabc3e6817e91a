"""What a trained model says about every LoRA, beside the truth and the controls."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core import plots
from lol_core.checkpoint import Checkpoint
from lol_core.errors import LoLError
from lol_core.evaluation import METRIC_TITLES, confusion
from lol_core.tasks import class_name
from lol_core.zoo import Zoo
from ui.frame import frame, need, page_link
from ui.selection import marked, offer, select, selected, visible
from ui.state import checkpoints, load_checkpoint

EXTREMES = 20
zoo = frame("Predictions")
need(len(zoo), "No LoRA could be read in this collection. Open another folder in the sidebar.")
models = checkpoints(zoo)
if not models:
    st.info("No model has been trained on this collection yet.", icon=":material/arrow_forward:")
    page_link("pages/Train.py", "Train one", ":material/model_training:")
    st.caption("Or open a checkpoint folder on the Home page.")
    st.stop()
title = st.selectbox("Model", list(models), key="model", bind="query-params")
need(title, "Choose a model.")
try:
    model = load_checkpoint(models[title])
except LoLError as error:
    st.error(str(error))
    st.stop()
for note in model.compare(zoo):
    st.warning(note)


@st.cache_data(max_entries=16, show_spinner="Predicting every LoRA …")
def predictions_of(folder: str, created: str, fingerprint: str, _model: Checkpoint, _zoo: Zoo) -> tuple[pd.DataFrame, dict[str, str]]:
    return _model.predict_zoo(_zoo)


predicted, refused = predictions_of(str(models[title]), model.created, zoo.fingerprint, model, zoo)
need(len(predicted), "This model can read none of these LoRAs: they belong to another base model or hold other modules.")
at_home = zoo.name == model.zoo
part_of = {id: part for part, ids in model.split.items() for id in ids} if at_home else {}
parts = pd.Series([part_of.get(id, "new") for id in predicted.index], index=predicted.index, name="part")
task = model.task
offer(zoo, f"predictions of {title}", predicted.add_prefix("predicted "))

if at_home:
    st.subheader("Scores")
    shown = [name for name in model.metrics["test"] if "/" not in name]
    rows = {f"{part}": values for part, values in model.metrics.items()} | {f"test, control: {name}": values for name, values in model.controls.items()}
    scores = pd.DataFrame({METRIC_TITLES[name]: {part: values.get(name) for part, values in rows.items()} for name in shown})
    st.dataframe(scores.style.format("{:.4g}", na_rep="–"), key="scores")
    if model.interval:
        n_test = len(model.split["test"])
        st.caption(f"95 % bootstrap interval of the headline test score over {n_test} LoRAs: {model.interval[0]:.3f} – {model.interval[1]:.3f}.")
    if len(task.targets) > 1:
        with st.expander("Per label, on the test part", key="per_label"):
            per_label = {t: {METRIC_TITLES[n]: model.metrics["test"][f"{n}/{t}"] for n in shown} for t in task.targets}
            st.dataframe(pd.DataFrame(per_label).T.style.format("{:.4g}", na_rep="–"))

target = st.selectbox("Label", task.targets, key="label") if len(task.targets) > 1 else task.targets[0]
known = zoo.labels[target] if target in zoo.labels.columns else pd.Series(index=zoo.ids, dtype=float)
truth = known.reindex(predicted.index)
frame_ = pd.DataFrame({"name": [zoo.names[id] for id in predicted.index], "part": parts, "true": truth, "predicted": predicted[target]})


def take_selection() -> None:
    marked(zoo, "scatter")


st.subheader(f"{target}: predicted against true")
options = [part for part in ("test", "validation", "train", "new") if (parts == part).any()]
chosen = st.segmented_control("Show", options, selection_mode="multi", default=options[:1], key="parts")
shown = frame_[frame_["part"].isin(chosen or options) & frame_.index.isin(visible(zoo))]
compared = shown.dropna(subset=["true"])
if not len(compared):
    st.info("These LoRAs have no label to compare with; the table below holds the predictions.")
elif task.kind == "multiclass":
    st.plotly_chart(
        plots.confusion_heatmap(confusion(task, zoo.labels.loc[compared.index], predicted.loc[compared.index].iloc[:, 1:].to_numpy())), key="confusion"
    )
else:
    figure = plots.predicted_against_true(compared, target, selected(zoo))
    st.plotly_chart(figure, key="scatter", on_select=take_selection, selection_mode=("points", "box", "lasso"), alt="Predicted against true values")
    ordered = shown[shown["part"] != "train"].sort_values("predicted", ascending=False)
    with st.container(horizontal=True):
        for name, rows in (("highest", ordered.head(EXTREMES)), ("lowest", ordered.tail(EXTREMES))):
            text = f"Select the {len(rows)} {name} predicted"
            st.button(text, icon=":material/select_all:", on_click=select, args=(zoo, list(rows.index)), key=f"select_{name}")

st.subheader("Every LoRA")
table = predicted.copy()
table.insert(0, "part", parts)
table.insert(0, "name", frame_["name"])
if task.kind == "multiclass":
    table.insert(2, f"{target} (true)", truth.map(class_name, na_action="ignore"))
else:
    for i, name in enumerate(task.targets):
        if name in zoo.labels.columns:
            table.insert(2 + 2 * i, f"{name} (true)", zoo.labels[name].reindex(table.index))
    if task.kind == "regression":
        table["error"] = predicted[target] - truth.astype(float)
st.dataframe(table, hide_index=True, height=420, key="table")
st.download_button("Download as CSV", table.rename_axis("lora").to_csv(), f"predictions-{Path(models[title]).name}.csv", "text/csv", icon=":material/download:")
if refused:
    with st.expander(f"{len(refused)} LoRAs have no prediction", icon=":material/block:", key="no_prediction"):
        st.dataframe(pd.DataFrame([{"path": id, "reason": reason} for id, reason in refused.items()]), hide_index=True)
