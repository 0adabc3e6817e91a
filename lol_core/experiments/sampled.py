"""New people sampled from the zoo's distribution, by its updates and by its factors, judged by what they draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core.core.batch import shared_spec, stack
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.experiments.comparison import with_half_widths
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept
from lol_core.experiments.merge_readings import Faces
from lol_core.experiments.result import Finding, Result, environment, verdict, with_interval
from lol_core.insight.plots import merged_and_turned
from lol_core.insight.principal import principal_weights, sample_new
from lol_core.learning.models.gram import gram
from lol_core.learning.verdict import over_seeds

TITLE = "New people sampled from the zoo: what they draw"
COUNT, WORD = 50, "person"
BASE, ZOO, UPDATES, FACTORS = "the base model", "people of the zoo", "sampled by ΔW", "sampled by factors"
SURE, STEADY, DIVERSE, SIZE, NOVEL = (
    "answers that are sure",
    "the same in every place",
    "attributes in which two differ",
    "‖ΔW‖, of the zoo's",
    "distance to the nearest of the zoo, of ‖ΔW‖",
)
READ = (SURE, STEADY, DIVERSE)


def run(context: Context) -> Result:
    faces = Faces(context.samples, context.work / "sampled", context.small, context.reporter)
    count = 2 if context.small else COUNT
    strong = faces.strong
    ids = [str(id) for id in strong.index[strong["prompt"] == WORD]][: 6 if context.small else None]
    loras = [faces.zoo.load(id) for id in ids]
    order = np.random.default_rng(19).permutation(len(loras))[:count]
    ways: dict[str, Sequence[LoRA | None]] = {
        BASE: [None],
        ZOO: [loras[i] for i in order],
        UPDATES: [made.lora for made in sample_new(loras, count)],
        FACTORS: by_factors(loras, count),
    }
    about = {"fingerprint": faces.zoo.fingerprint, "from": len(loras), "small": context.small}
    kept = Kept(context.folder / "sampled.jsonl", about)
    known = {(line["way"], line["number"]): line["judged"] for line in kept.lines()}
    rows = []
    for way, made in ways.items():
        for number, lora in enumerate(made):
            if (way, number) not in known:
                context.reporter.show(f"{way}: {number + 1} of {len(made)}", number / len(made))
                context.reporter.check("What was read is kept; the same command goes on.")
                known[way, number] = faces.judged(lora, WORD).double().tolist()
                kept.add(way=way, number=number, judged=known[way, number])
        judged = np.array([known[way, number] for number in range(len(made))])
        rows += [{"way": way} | row for row in read(judged)]
        if made[0] is not None:
            own = order.tolist() if way == ZOO else None
            for row, more in zip(
                rows[-len(made) :], distances([lora for lora in made if lora], loras, own), strict=True
            ):
                row.update(more)
    table = pd.DataFrame(rows)
    return Result(
        "sampled",
        TITLE,
        _cells(table),
        _findings(table),
        _notes(len(loras), count),
        _figure(table),
        {
            "zoos": {"faces": {"fingerprint": faces.zoo.fingerprint, "LoRAs": len(faces.zoo)}},
            "environment": environment(),
        },
    )


def by_factors(loras: Sequence[LoRA], count: int) -> list[LoRA]:
    """The same Gaussian over the numbers of the files, U and V side by side."""
    spec = shared_spec(loras)
    flat = np.stack([np.concatenate([part.double().flatten() for y in x.layers for part in (y.U, y.V)]) for x in loras])
    made = []
    for weights in torch.from_numpy(principal_weights(flat @ flat.T, count)):
        layers = []
        for module in spec.modules:
            U, V = (
                sum(
                    float(w) * getattr(lora[module.name], side).double() for w, lora in zip(weights, loras, strict=True)
                )
                for side in ("U", "V")
            )
            scale = loras[0][module.name].scale
            layers.append(LoRALayer.pair(module.name, U.float(), V.float(), scale=scale))
        made.append(replace(loras[0], layers=tuple(layers)))
    return made


def read(judged: np.ndarray) -> list[dict[str, float]]:
    """What is read of each LoRA. judged: (LoRAs, places, attributes), how sure each attribute is."""
    shown = judged > 0.5
    most = shown.mean(1) > 0.5
    others = max(1, len(most) - 1)
    return [
        {
            SURE: float((np.abs(own - 0.5) > 0.4).mean()),
            STEADY: float((seen == one).mean()),
            DIVERSE: float((most != one).mean(1).sum() / others) if len(most) > 1 else np.nan,
        }
        for own, seen, one in zip(judged, shown, most, strict=True)
    ]


def distances(made: Sequence[LoRA], zoo: Sequence[LoRA], own: Sequence[int] | None) -> list[dict[str, float]]:
    """‖ΔW‖ and the distance to the nearest of the zoo but oneself. own: the places in the zoo of those of it."""
    spec = shared_spec([*made, *zoo])
    new, old = (stack(list(part), spec, torch.float64) for part in (made, zoo))
    sizes, of_zoo = (np.array([gram(batch[i : i + 1])[0, 0] for i in range(len(batch))]) for batch in (new, old))
    squares = sizes[:, None] + of_zoo - 2 * gram(new, old)
    if own is not None:
        squares[np.arange(len(own)), own] = np.inf
    nearest = np.sqrt(squares.min(1).clip(0) / sizes)
    return [
        {SIZE: float((size / of_zoo.mean()) ** 0.5), NOVEL: float(far)}
        for size, far in zip(sizes, nearest, strict=True)
    ]


def _of_each(rows: pd.DataFrame, column: str) -> pd.Series:
    """What the mean is of: a mean over pairs moves with one LoRA twice as far as that LoRA's own (Hoeffding 1948)."""
    values = rows[column].dropna()
    return 2 * values - values.mean() if column == DIVERSE else values


def _means(table: pd.DataFrame, column: str) -> pd.DataFrame:
    values = {str(way): _of_each(rows, column).tolist() for way, rows in table.groupby("way", sort=False)}
    return with_half_widths({way: each for way, each in values.items() if len(each) > 1}, 0.0)


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for column in (*READ, SIZE, NOVEL):
        means = _means(table, column)
        for way, values in table.groupby("way", sort=False)[column]:
            mean, std = means.loc[way] if way in means.index else (values.iloc[0], np.nan)
            if pd.notna(mean):
                rows.append((way, column, mean, std, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["row", "column", "mean", "std", "paper", "paper_std"])


def _findings(table: pd.DataFrame) -> list[Finding]:
    of = {str(way): rows for way, rows in table.groupby("way")}

    def more(statement: str, column: str, one: str, other: str) -> Finding:
        gaps = _of_each(of[one], column).to_numpy() - _of_each(of[other], column).to_numpy()
        gap = over_seeds(gaps.tolist(), 0.0, 1)
        return Finding(statement, verdict(gap), f"{column}: {with_interval(gap)}.", in_paper=False)

    return [
        more(
            "People sampled by ΔW are drawn the same in every place more than those by factors.",
            STEADY,
            UPDATES,
            FACTORS,
        ),
        more("People sampled by ΔW differ more from each other than those by factors.", DIVERSE, UPDATES, FACTORS),
        more(
            "People of the zoo are drawn the same in every place more than those sampled by ΔW.", STEADY, ZOO, UPDATES
        ),
        more("People of the zoo differ more from each other than those sampled by ΔW.", DIVERSE, ZOO, UPDATES),
    ]


def _notes(known: int, count: int) -> list[str]:
    return [
        (
            f"Numbers are means over {count} LoRAs with half the width of their 95 % interval, diversity over all"
            f" their pairs. The distribution is that of {known} LoRAs fine-tuned as the word {WORD!r} at rates and"
            " for times at which they draw their person."
        ),
        (
            "By ΔW: a Gaussian over the principal components of the updates, each sample a weighted sum of them"
            " all, cut to their rank. By factors: the same over the numbers of the files, as weights2weights has"
            " it, which other factors of the same LoRAs would change. Both draw all components as often as the"
            " zoo does; no setting was chosen by these scores."
        ),
        (
            "A judge that was trained on drawn people and never saw a LoRA reads five attributes of a picture"
            " in each of seven places, drawn from the same noise for all. Sure: above 0.9 or below 0.1. The same"
            " in every place: how often an attribute is read as in most places of that LoRA, ½ to 1, so high too"
            " for one that always draws the same; that two differ is counted beside it, in what is read in most"
            " places."
        ),
    ]


def _figure(table: pd.DataFrame) -> go.Figure:
    parts = [
        _means(table, column).rename_axis("row").reset_index().assign(panel=column, turned=False) for column in READ
    ]
    return merged_and_turned(pd.concat(parts), [ZOO, UPDATES, FACTORS]).update_layout(showlegend=False)
