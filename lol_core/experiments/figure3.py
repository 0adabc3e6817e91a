"""Figure 3: what the LoRAs draw that GL-net predicts best and worst, and how those at both ends were really
measured.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from lol_core.core.progress import Reporter, Stopped
from lol_core.experiments.comparison import INTERVAL, cells, halved, settings, with_half_widths
from lol_core.experiments.context import Context
from lol_core.experiments.paper import FIVE
from lol_core.experiments.question import fold_of
from lol_core.experiments.result import Finding, Result, verdict, with_interval
from lol_core.experiments.table2 import FOLDED_QUESTION
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.finetuning.recipes import CELEBA
from lol_core.insight.generation import Painter, Sampling, contact_sheet
from lol_core.insight.plots import sheet
from lol_core.learning.verdict import over_seeds

TITLE = "Figure 3: the LoRAs predicted best and worst"
GL_NET, NORMS, CHANCE = FIVE["gl_net"].title, "control: norms only", "control: all test LoRAs"
ROWS = {"gl_net": GL_NET, "norms only": NORMS, KERNEL: KERNEL}
ENDS = 10
"""LoRAs at each end of a ranking whose measured scores are averaged."""
SHOWN = 3
PROMPTS = ("a portrait of a person", "a person on the beach", "a celebrity in the snow")
DRAWING_STEPS = 10


def run(context: Context) -> Result:
    context = context.by_halving()
    ours = context.trials(FOLDED_QUESTION, ("gl_net",))
    scores, ranked = ours.zoo.labels["clip_score"], rankings(ours)
    table = pd.concat([ends(each, scores).assign(seed=fold) for fold, each in enumerate(ranked)])
    parts = []
    for column in ("highest", "lowest", "difference"):
        by_row = table.groupby("row", sort=False)[column]
        means = with_half_widths({str(row): each.tolist() for row, each in by_row}, ours.test_share)
        parts.append(cells(NAMES[column], means))
    best = ranked[0][GL_NET]
    names = list(best)
    columns = [*names[:SHOWN], None, *names[-SHOWN:]]
    picture = draw(context, ours, columns, best)
    by_model = table.pivot_table(index="seed", columns="row", values="difference")
    gap, over = (
        over_seeds(values.tolist(), ours.test_share)
        for values in (by_model[GL_NET], by_model[GL_NET] - by_model[NORMS])
    )
    mean_ends = table[table["row"] == GL_NET][["highest", "lowest"]].mean()
    findings = [
        Finding(
            "LoRAs that GL-net predicts a high CLIP score for have a higher one than those it predicts a low one for.",
            verdict(gap),
            f"the {ENDS} held-out LoRAs it ranks highest were measured at {mean_ends['highest']:.3f}, the {ENDS} lowest"
            f" at {mean_ends['lowest']:.3f} (difference"
            f" {with_interval(gap)}).",
        ),
        Finding(
            "Does it tell the ends apart better than the norms of the updates?",
            verdict(over),
            f"its difference exceeds that of the norms by {with_interval(over)}.",
            in_paper=False,
        ),
    ]
    notes = [
        (
            "The sheet: LoRAs of the test part of the first fold, three of the highest and three of the lowest"
            f" predictions, the base model between them; prompts {', '.join(repr(prompt) for prompt in PROMPTS)}, one"
            f" seed for all, {DRAWING_STEPS} steps. Nothing was drawn for the ranking itself."
        ),
        (
            f"The table: mean measured CLIP score of the {ENDS} test LoRAs at each end of a ranking, over the"
            f" folds of table 2, whose GL-net this is. {INTERVAL} The paper shows images and no such numbers."
        ),
        halved(context.budget),
    ]
    return Result(
        "figure3",
        TITLE,
        pd.concat(parts, ignore_index=True),
        findings,
        notes,
        picture,
        settings([ours], context.budget) | {"shown": columns},
    )


NAMES = {
    "highest": f"measured, {ENDS} ranked highest",
    "lowest": f"measured, {ENDS} ranked lowest",
    "difference": "difference",
}


def rankings(trials: Trials) -> list[dict[str, dict[str, float]]]:
    """For each fold: row title → test LoRA → prediction, the highest first."""
    by_fold: list[dict[str, dict[str, float]]] = [{} for _ in range(trials.budget.seeds)]
    for line in trials.chosen():
        if line["model"] in ROWS and "predicted" in line:  # not what diverged
            test = fold_of(trials.labelled, line["seed"])["test"]
            pairs = sorted(zip(test, line["predicted"], strict=True), key=lambda pair: pair[1], reverse=True)
            by_fold[line["seed"]][ROWS[line["model"]]] = dict(pairs)
    return by_fold


def ends(ranked: dict[str, dict[str, float]], scores: pd.Series) -> pd.DataFrame:
    """For each ranking the mean measured score of its ends, and the mean of all as what a ranking by chance would
    give.
    """
    rows = []
    for name, predicted in ranked.items():
        order = list(predicted)
        count = min(ENDS, len(order) // 2)
        highest, lowest = scores[order[:count]].mean(), scores[order[-count:]].mean()
        rows.append((name, highest, lowest, highest - lowest))
    everyone = scores[list(next(iter(ranked.values())))].mean()
    rows.append((CHANCE, everyone, everyone, 0.0))
    return pd.DataFrame(rows, columns=["row", "highest", "lowest", "difference"])


def draw(context: Context, trials: Trials, columns: list[str | None], predicted: dict[str, float]) -> go.Figure:
    """The sheet of images as a figure. A column for each LoRA, None for the base model."""
    recipe = CELEBA.with_settings(context.samples / "faces" / "recipe.json")
    painter = Painter(context.samples / "small-diffusion")
    sampling = Sampling(recipe.score_seed, 2 if context.small else DRAWING_STEPS, recipe.guidance)
    prompts, titles, drawn = (PROMPTS[:1] if context.small else PROMPTS), [], []
    for i, id in enumerate(columns):
        context.reporter.show(f"Drawing {i + 1} of {len(columns)}", 0.5 + 0.5 * i / len(columns))
        path = None if id is None else trials.zoo.path(id)
        try:
            drawn.append(painter.draw(path, prompts, sampling, Reporter(stop=context.reporter.stop), keep=False))
        except Stopped as error:
            raise Stopped("Stopped. What was fitted is kept; the same command goes on.") from error
        measured = None if id is None else trials.zoo.labels["clip_score"][id]
        titles.append("base model\n" if id is None else f"predicted {predicted[id]:.2f}\nmeasured {measured:.2f}")
    return sheet(contact_sheet(list(zip(*drawn, strict=True)), titles, prompts, cell=160))
