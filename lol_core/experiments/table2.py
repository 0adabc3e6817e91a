"""Table 2: the CLIP score of a LoRA's images, predicted from its weights."""

from __future__ import annotations

import pandas as pd

from lol_core.experiments.comparison import SEARCH, Papers, best_rival, cells, chart, differences, settings, summary
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Result, verdict
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


def run(context: Context) -> Result:
    ours = context.trials(QUESTION)
    columns = {
        "train MSE": ("train loss", TRAIN_MSE),
        "test MSE": ("normalized_mse", TEST_MSE),
        "Kendall τ": ("kendall_tau", TAU),
        "R²": ("r2", None),
        "Spearman ρ": ("spearman", R2),
    }
    table = pd.concat(
        [cells(column, summary(ours, score), papers) for column, (score, papers) in columns.items()], ignore_index=True
    )
    mse = summary(ours, "normalized_mse")["mean"]
    rival = best_rival(ours, "normalized_mse", [name for name in FIVE if name != "gl_net"], lower_is_better=True)
    gap, error = differences(ours, "normalized_mse", rival, "gl_net")
    mlp, mlp_error = differences(ours, "normalized_mse", "mlp", "constant")
    norms, norms_error = differences(ours, "kendall_tau", "gl_net", "norms only")
    kernel, kernel_error = differences(ours, "kendall_tau", "gl_net", "product kernel")
    middle = [mse[FIVE[name].title] for name in ("o_align", "svd", "dense")]
    findings = [
        Finding(
            "GL-net has the lowest test MSE of the five.",
            verdict(gap, error),
            f"{mse['GL-net']:.3f}; the best of the others is {FIVE[rival].title} with {mse[FIVE[rival].title]:.3f}"
            f" (difference {gap:+.3f} ± {error:.3f}).",
        ),
        Finding(
            "A plain MLP does no better than guessing.",
            "holds" if mlp > -2 * mlp_error else "does not hold",
            f"test MSE {mse['MLP']:.3f}; a constant has {mse['control: constant']:.3f}.",
        ),
        Finding(
            "O-Align, SVD and Dense perform alike on the test set.",
            "holds" if max(middle) - min(middle) <= 0.05 else "does not hold",
            f"{', '.join(f'{value:.3f}' for value in middle)} test MSE; in the paper they lie within 0.03.",
        ),
        Finding(
            "Does GL-net rank LoRAs better than the norms of their updates do?",
            verdict(norms, norms_error),
            f"Kendall τ {norms:+.3f} ± {norms_error:.3f} against norms; {kernel:+.3f} ± {kernel_error:.3f} against the"
            " product kernel.",
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
            "Why no model stands out: a test part has 150 LoRAs, and the spread over splits is as large as the"
            " differences between the models; all are far below the paper's, with a quarter of its LoRAs and scores in"
            " which the norm of the update alone already tells a good part."
        ),
    ]
    return Result("table2", TITLE, table, findings, notes, chart(table, "Kendall τ"), settings([ours], context.budget))
