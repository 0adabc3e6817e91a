"""Whether the product kernel stays ahead of GL-net on classes when there are more LoRAs to learn from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lol_core.experiments.comparison import INTERVAL, SHUFFLING, by_split, cells, intervals, settings, title_of
from lol_core.experiments.context import Context
from lol_core.experiments.paper import COMPARED
from lol_core.experiments.result import Finding, Result, verdict, weakest, with_interval
from lol_core.experiments.search import TWO_ORDERS, Setting, Variant
from lol_core.experiments.table3 import CLASSES_QUESTION
from lol_core.experiments.trials import KERNEL, Trials
from lol_core.insight.plots import across
from lol_core.learning.config import Keep
from lol_core.learning.models.apart import Apart
from lol_core.learning.verdict import over_seeds

TITLE = "Learning curves: classes on Emojinette, from fewer LoRAs"
SIZES = (200, 400, None)
"""Training LoRAs; None for the whole training part."""
_WIDE = {"width": 128, "depth": 1, "keep": Keep.BEST_SCORE.value}
SETTING = (
    "learning rate 1e-3, inputs as they are, a head of 1 × 128, dropout 0.1, batches of 32, at most 60 epochs and 10"
    " without a better one, the one with the best validation"
)
"""Of `one_setting`, in words; the score's name ends them."""


def one_setting(width: int, name: str = "", **options: Any) -> Variant:
    """A GL-net of an equivariant width with `SETTING`. name: what its options add, in words."""
    setting = Setting(1e-3, tuple((_WIDE | {"equivariant_width": width}).items()))
    name = f"width {width}{name}"
    return Variant("gl_net", f"gl_net, {name}", f"GL-net, {name}", tuple(options.items()), setting)


NARROW, WIDE = one_setting(16), one_setting(64)
APART = one_setting(64, ", size apart", apart=frozenset(Apart))
SIZE_APART = 3
"""Questions that `experiment apart` asks about that GL-net."""
OTHERS = tuple(
    Variant(name, f"{name}, one setting", COMPARED[name].title, fixed=Setting(1e-3, tuple(_WIDE.items())))
    for name in COMPARED
    if name in ("mlp", "o_align", "svd", "dense", "tucker")
)
ALIGNED = "o_align, one setting"


def run(context: Context) -> Result:
    sizes = (10, None) if context.small else SIZES
    trials = [
        context.trials(CLASSES_QUESTION, (NARROW, WIDE, APART, *OTHERS, TWO_ORDERS), known=size) for size in sizes
    ]
    counts = [len(each.prepared(NARROW.name, Setting(1e-3), 0).split["train"]) for each in trials]
    means = dict(zip(counts, (intervals(each, "accuracy") for each in trials), strict=True))
    table = pd.concat([cells(f"{count} LoRAs", each) for count, each in means.items()], ignore_index=True)
    rows = [(title, count, *values) for count, each in means.items() for title, *values in each.itertuples()]
    lines = pd.DataFrame(rows, columns=["model", "x", "mean", "std"]).assign(panel="accuracy")
    lines = lines[
        lines["model"].isin(
            [NARROW.title, WIDE.title, APART.title, TWO_ORDERS.title, title_of(KERNEL), "control: norms only"]
        )
    ]
    notes = [
        "The LoRAs of a smaller training part are among those of a larger one; validation and test parts are those of"
        f" the whole split. All models have the same one setting at every size ({SETTING} accuracy), which was not"
        " searched, so that their order is that of this setting; size apart adds TuckerNet's unit norm, log-size branch"
        " and linear skip (docs/methods.md). Ridge regression on the product kernel chooses its kernel and its ridge on"
        " the validation LoRAs. The models that are no GL-nets were asked when these had been seen;"
        " TuckerNet was shaped on seeds 0 to 2 of these, the two-order kernel (docs/two_orders.md) on all five; it has"
        " no setting, and does not read the validation LoRAs.",
        f"{INTERVAL} {SHUFFLING} The intervals hold each for itself, not all together, but for those of the two-order"
        " kernel over the product kernel.",
        "Emojinette ends here: what more LoRAs would do was not asked. LoRAs from one start of A are asked about in"
        " *From one start* (experiment starts).",
    ]
    figure = across(lines, "training LoRAs")
    return Result(
        "curve", TITLE, table, _findings(trials, counts), notes, figure, settings(trials[-1:], context.budget)
    )


def _findings(trials: list[Trials], counts: list[int]) -> list[Finding]:
    gaps = {}
    for count, each in zip(counts, trials, strict=True):
        scores = by_split(each, "accuracy", WIDE.name, KERNEL, NARROW.name, APART.name, ALIGNED, TWO_ORDERS.name)
        gaps[count] = pd.DataFrame(
            {
                "kernel": scores[KERNEL] - scores[WIDE.name],
                "width": scores[WIDE.name] - scores[NARROW.name],
                "apart": scores[APART.name] - scores[WIDE.name],
                "kernel, apart": scores[KERNEL] - scores[APART.name],
                "aligned": scores[ALIGNED] - scores[WIDE.name],
                "orders": scores[TWO_ORDERS.name] - scores[KERNEL],
                "orders, GL-net": scores[TWO_ORDERS.name] - scores[WIDE.name],
            }
        )
    fewest, most = gaps[counts[0]], gaps[counts[-1]]
    share, most_share = trials[0].test_share, trials[-1].test_share
    closing = over_seeds((fewest["kernel"] - most["kernel"]).tolist(), share)
    closing_aligned = over_seeds((fewest["aligned"] - most["aligned"]).tolist(), share)
    behind, wider, still, aligned = (
        over_seeds(most[name].tolist(), most_share) for name in ("kernel", "width", "kernel, apart", "aligned")
    )
    apart = over_seeds(most["apart"].tolist(), most_share, SIZE_APART)
    orders = {
        count: over_seeds(gap["orders"].tolist(), each.test_share, len(gaps))
        for (count, gap), each in zip(gaps.items(), trials, strict=True)
    }

    def leads(name: str) -> str:
        return "; ".join(f"{count} LoRAs {gap[name].mean():+.3f}" for count, gap in gaps.items())

    return [
        Finding(
            f"The kernel's lead over GL-net of width 64 is smaller with {counts[-1]} LoRAs than with {counts[0]}.",
            verdict(closing),
            f"the kernel is ahead in accuracy by {leads('kernel')}; the lead shrinks by {with_interval(closing)}.",
            in_paper=False,
        ),
        Finding(
            f"With all {counts[-1]} LoRAs the kernel is still ahead of GL-net of width 64.",
            verdict(behind),
            f"by {with_interval(behind)}.",
            in_paper=False,
        ),
        Finding(
            "A GL-net of width 64 tells classes better than one of width 16.",
            verdict(wider),
            f"with all {counts[-1]} LoRAs by {with_interval(wider)} in accuracy.",
            in_paper=False,
        ),
        Finding(
            "A GL-net that reads size apart from direction, and everything linearly too, tells classes better.",
            verdict(apart),
            f"with all {counts[-1]} LoRAs by {with_interval(apart)} in accuracy, widened for the {SIZE_APART} questions"
            f" of *Size apart*; the kernel is ahead of it by {with_interval(still)}.",
            in_paper=False,
        ),
        Finding(
            f"MLP + O-Align's lead over GL-net of width 64 is smaller with {counts[-1]} LoRAs than with {counts[0]}.",
            verdict(closing_aligned),
            f"MLP + O-Align is ahead in accuracy by {leads('aligned')} ({with_interval(aligned)} with all); the lead"
            f" shrinks by {with_interval(closing_aligned)}.",
            in_paper=False,
        ),
        Finding(
            "The two-order kernel tells classes better than the product kernel at every size.",
            weakest(verdict(gap) for gap in orders.values()),
            f"by {'; '.join(f'{count} LoRAs {with_interval(gap)}' for count, gap in orders.items())}, widened for"
            f" {len(orders)}; it is ahead of GL-net of width 64 by {leads('orders, GL-net')}.",
            in_paper=False,
        ),
    ]
