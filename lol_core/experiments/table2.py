"""Table 2: the CLIP score of a LoRA's images, predicted from its weights."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from lol_core.experiments.comparison import (
    SEARCH,
    Papers,
    above_all,
    best_rival,
    cells,
    chart,
    differences,
    intervals,
    settings,
    summary,
)
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, alike, verdict, weakest, with_interval
from lol_core.experiments.trials import Context, Question

TITLE = "Table 2: CLIP score on Faces"
QUESTION = Question("faces-clip-score", "faces", ("clip_score",))
TRAIN_MSE: Papers = {
    "mlp": (0.047, 0.004),
    "o_align": (0.001, 0.001),
    "svd": (0.071, 0.003),
    "dense": (0.013, 0.002),
    "gl_net": (0.009, 0.001),
}
TEST_MSE: Papers = {
    "mlp": (0.988, 0.005),
    "o_align": (0.175, 0.006),
    "svd": (0.148, 0.005),
    "dense": (0.169, 0.011),
    "gl_net": (0.111, 0.004),
}
TAU: Papers = {
    "mlp": (0.226, 0.016),
    "o_align": (0.654, 0.004),
    "svd": (0.667, 0.008),
    "dense": (0.677, 0.006),
    "gl_net": (0.695, 0.005),
}
R2: Papers = {
    "mlp": (0.333, 0.022),
    "o_align": (0.856, 0.004),
    "svd": (0.863, 0.006),
    "dense": (0.871, 0.005),
    "gl_net": (0.884, 0.003),
}


MARGIN = 0.05
"""Of the normalised MSE: what differs by less is called alike. In the paper O-Align, SVD and Dense lie within 0.03."""


def run(context: Context) -> Result:
    ours = context.trials(QUESTION)
    columns = {
        "Kendall τ": ("kendall_tau", TAU),
        "Spearman ρ": ("spearman", R2),
        "test MSE": ("normalized_mse", TEST_MSE),
        "train MSE": ("train loss", TRAIN_MSE),
        "R²": ("r2", None),
    }
    table = pd.concat(
        [cells(column, intervals(ours, score), papers) for column, (score, papers) in columns.items()],
        ignore_index=True,
    )
    mse = summary(ours, "normalized_mse")["mean"]
    rival = best_rival(ours, "normalized_mse", [name for name in FIVE if name != "gl_net"], lower_is_better=True)
    gap = differences(ours, "normalized_mse", rival, "gl_net")
    mlp = differences(ours, "normalized_mse", "constant", "mlp")
    norms = differences(ours, "kendall_tau", "gl_net", "norms only")
    kernel = differences(ours, "kendall_tau", "gl_net", "product kernel")
    middle = ("o_align", "svd", "dense")
    apart = {pair: differences(ours, "normalized_mse", *pair) for pair in combinations(middle, 2)}
    findings = [
        Finding(
            "GL-net has the lowest test MSE of the five.",
            above_all(ours, "normalized_mse", "gl_net", list(FIVE), lower_is_better=True),
            f"{mse['GL-net']:.3f}; the best of the others is {FIVE[rival].title} with {mse[FIVE[rival].title]:.3f}"
            f" (difference {with_interval(gap)}).",
        ),
        Finding(
            "A plain MLP does no better than guessing.",
            alike(mlp, MARGIN),
            f"test MSE {mse['MLP']:.3f}; a constant has {mse['control: constant']:.3f} (difference"
            f" {with_interval(mlp)}; alike is within {MARGIN}).",
        ),
        Finding(
            "O-Align, SVD and Dense perform alike on the test set.",
            weakest(alike(gap, MARGIN) for gap in apart.values()),
            f"test MSE {', '.join(f'{mse[FIVE[name].title]:.3f}' for name in middle)}; differences"
            f" {', '.join(map(with_interval, apart.values()))}; alike is within {MARGIN}, in the paper they lie within"
            " 0.03.",
        ),
        Finding(
            "Does GL-net rank LoRAs better than the norms of their updates do?",
            verdict(norms),
            f"Kendall τ {with_interval(norms)} against norms; {with_interval(kernel)} against the product kernel.",
            in_paper=False,
        ),
    ]
    notes = [
        SEARCH,
        (
            "MSE is of the CLIP score normalised by the training mean and standard deviation. What the authors' code"
            " reports as R² is a Spearman coefficient, so their R² stands beside ours there. Faces has 1,000 LoRAs of a"
            " small diffusion model, the paper's zoo 3,900 of Stable Diffusion 1.4, and other prompts."
        ),
        (
            "MSE and R² hang on a few LoRAs here: one in a hundred carries 27 % of the variance of the score. Kendall's"
            " τ does not, so it comes first. The prompts are 34 about people and not the paper's 33."
        ),
        (
            "The intervals are as wide as the differences between most models, so that this table does not rank them."
            " Why all lie below the paper's has not been tested: number of LoRAs, base model and prompts all differ."
        ),
    ]
    return Result("table2", TITLE, table, findings, notes, chart(table, "Kendall τ"), settings([ours], context.budget))
