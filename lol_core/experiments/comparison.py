"""The shared shape of tables 2 to 5: models beside the product kernel, the controls and the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lol_core.experiments.paper import COMPARED
from lol_core.experiments.result import Holds, environment, verdict
from lol_core.experiments.search import BATCHES, DROPOUTS, HEADS, OWN, RATES, SHUFFLED, Budget
from lol_core.experiments.trials import CONTROLS, KERNEL, Trials
from lol_core.insight.plots import models_beside_controls
from lol_core.learning.verdict import Difference, over_seeds

Papers = Mapping[str, tuple[float, float]]
"""Model → the paper's mean and standard deviation."""


def summary(trials: Trials, score: str) -> pd.DataFrame:
    """Row title → mean and std over seeds of one score: models, the product kernel, controls (shuffled labels: over the
    models, at seed 0).
    """
    table = trials.table()
    rows = {}
    order = sorted(trials.variants, key=lambda name: list(COMPARED).index(trials.variants[name].model))
    for name in [*order, KERNEL, *CONTROLS]:
        shuffled = [variant.shuffled for variant in trials.variants.values()]
        part = table[table["model"].isin(shuffled)] if name == SHUFFLED else table[table["model"] == name]
        values = part[score].to_numpy(float) if score in part else np.array([])
        rows[title_of(name, trials)] = (
            values.mean() if len(values) else np.nan,
            values.std(ddof=1) if len(values) > 1 else np.nan,
        )
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "std"])


def with_half_widths(values: Mapping[str, Sequence[float]], test_share: float) -> pd.DataFrame:
    """Row → mean over seeds, and half the width of its 95 % interval (`over_seeds`) as its spread, from a score at each
    seed.
    """
    means = {row: over_seeds(each, test_share) for row, each in values.items()}
    rows = {row: (mean.value, mean.high - mean.value) for row, mean in means.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "std"])


def intervals(trials: Trials, score: str) -> pd.DataFrame:
    """As `summary`, with `with_half_widths` for its spread; none for shuffled labels."""
    means, table = summary(trials, score), trials.table()
    if score in table:
        by_title = {title_of(str(name), trials): part[score].tolist() for name, part in table.groupby("model")}
        means["std"] = with_half_widths(by_title, trials.test_share)["std"].reindex(means.index)
    return means


def title_of(name: str, trials: Trials | None = None) -> str:
    """How a row is called: a model's title, or that of an experiment's variant; the product kernel; a control."""
    if trials is not None and name in trials.variants:
        return trials.variants[name].title
    if name in COMPARED:
        return COMPARED[name].title
    return name if name == KERNEL else f"control: {name}"


def cells(column: str, means: pd.DataFrame, papers: Papers | None = None) -> pd.DataFrame:
    """One column of a table, beside the paper's."""
    published = {COMPARED[name].title: values for name, values in (papers or {}).items()}
    rows = [(row, column, mean, std, *published.get(row, (np.nan, np.nan))) for row, mean, std in means.itertuples()]
    return pd.DataFrame(rows, columns=["row", "column", "mean", "std", "paper", "paper_std"])


def differences(trials: Trials, score: str, one: str, other: str, *, among: int = 1) -> Difference:
    """one − other on the same splits, NaN where one has no score at some split. among: how many such differences this
    one was picked from.
    """
    table = by_split(trials, score, one, other)
    return over_seeds((table[one] - table[other]).tolist(), trials.test_share, among)


def by_split(trials: Trials, score: str, *names: str) -> pd.DataFrame:
    """Seed → one score of each name, NaN where a model diverged, at the splits at which all of them were asked."""
    table = trials.table().reindex(columns=["seed", "model", score])
    table = table[table["seed"] < min(map(trials.splits, names))]
    return table.pivot(index="seed", columns="model", values=score).reindex(columns=[*names])  # noqa: PD010, one value each


def beyond(trials: Trials, score: str, name: str, value: float, *, among: int = 1) -> Difference:
    """A score less a fixed value."""
    table = trials.table()
    return over_seeds((table.loc[table["model"] == name, score] - value).tolist(), trials.test_share, among)


def least_clear(
    trials: Trials, score: str, name: str, among: Sequence[str], *, lower_is_better: bool = False
) -> tuple[str, Difference]:
    """The one of some others that a model is least clearly better than, and by how much it is, as one picked from all
    of them (Bonferroni): better than all only where it is better than this one.
    """
    pairs = {other: (other, name) if lower_is_better else (name, other) for other in among if other != name}
    gaps = {other: differences(trials, score, *pair, among=len(pairs)) for other, pair in pairs.items()}

    def weakness(gap: Difference) -> tuple[int, float]:  # the least of one that diverged
        return list(Holds).index(verdict(gap)), -np.inf if np.isnan(gap.value) else -gap.value

    return max(gaps.items(), key=lambda each: weakness(each[1]))


def best_rival(trials: Trials, score: str, among: Sequence[str]) -> str:
    """The best mean over splits; a model that diverged on one of them is no rival."""
    return str(by_split(trials, score, *among).mean(skipna=False).idxmax())


def chart(table: pd.DataFrame, column: str) -> go.Figure:
    return models_beside_controls(table[table["column"] == column], column)


def settings(trials: Sequence[Trials], budget: Budget) -> dict[str, Any]:
    """The exact settings: questions, budget, what was chosen for each model and seed, and the software."""
    chosen = {
        t.question.name: [
            {
                key: line.get(key)
                for key in ("model", "seed", "setting", "picked", "epochs", "parameters")
                if line.get(key) is not None
            }
            for line in t.chosen()
        ]
        for t in trials
    }
    questions = {
        t.question.name: {
            "zoo": t.zoo.name,
            "fingerprint": t.zoo.fingerprint,
            "LoRAs": len(t.zoo),
            "targets": t.question.targets,
        }
        for t in trials
    }
    return {"questions": questions, "budget": asdict(budget), "chosen": chosen, "environment": environment()}


GRID = (
    "Every model was searched over the same grid (learning rate 3e-4, 1e-3, 3e-3; inputs normalised or not; dropout 0.1"
    " in the head, weight decay 0, at most 60 epochs, the epoch with the lowest validation loss) at every seed, on that"
    " seed's own validation LoRAs; a seed is another split (70 / 15 / 15 %) and another initialisation."
)
INTERVAL = (
    "± is half the width of the 95 % interval of the mean over splits, and differences stand with theirs. Splits"
    " overlap, so the variance is the corrected one of Nadeau and Bengio (2003), (1/J + test/training LoRAs) s² for J"
    " splits, with Student's t of J − 1 degrees of freedom."
)
PRINTED = "The paper's ± is as it is printed there."
PICKED = (
    "The model that decides whether another is the best is picked from all others, so the interval of that difference"
    " is widened for as many (Bonferroni)."
)
SHUFFLING = "Shuffled labels: the mean over the models, each trained on them once, at seed 0."
HALVING = (
    "Every model was searched alike: {settings} settings drawn from its own grid (learning rate {rates}; head {heads}"
    " hidden layers × width; batches of {batches}; inputs normalised or not; GL-net's equivariant width {widths},"
    " spectral statistics' weight decay, for all others dropout {dropouts}) and halved ({rungs}) on the first split, by"
    " the validation score that the table reports first; the epoch is the one with the best validation accuracy or R²."
    " The winner is used on the other splits: about 85 % of their test LoRAs (73 to 94 % by split, 77 to 100 % by fold)"
    " were training or validation LoRAs of that search."
)


def described(budget: Budget, *, authors: bool = True) -> str:
    """How models were searched, and what ± is. authors: whether the paper's numbers stand beside, and where models are
    searched rows have its authors' settings.
    """
    if budget.search is None:
        return f"{GRID} {INTERVAL} {PRINTED} {SHUFFLING}"
    return " ".join([halved(budget), *[AUTHORS] * authors, INTERVAL, *[PRINTED] * authors, SHUFFLING])


def halved(budget: Budget) -> str:
    """How models were searched by halving."""
    search = budget.search
    assert search is not None
    rungs = "; ".join(f"{rung.epochs} epochs, the best {rung.kept} go on" for rung in search.rungs)
    return HALVING.format(
        settings=search.settings,
        rates=", ".join(f"{rate:g}" for rate in RATES),
        heads=", ".join(f"{depth} × {width}" for width, depth in HEADS),
        batches=" or ".join(map(str, BATCHES)),
        widths=", ".join(map(str, OWN["gl_net"][1])),
        dropouts=", ".join(f"{p:g}" for p in DROPOUTS),
        rungs=rungs,
    )


AUTHORS = (
    "Rows called *authors' setting* have the settings of the authors' scripts, unsearched: epochs, widths, batches and"
    " rates as there, where a zoo of fewer LoRAs gives fewer steps; those scripts drop the last incomplete batch, which"
    " is kept here."
)
