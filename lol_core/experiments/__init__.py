"""The paper's tables and figures on the sample zoos, one file each: `run(context)` gives a `Result`, `TITLE` says what
it is.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, cast

from lol_core.errors import LoLError, needing

if TYPE_CHECKING:
    from lol_core.experiments.context import Context
    from lol_core.experiments.result import Result

OF_PAPER = ("table1", "table2", "table3", "table4", "table5", "figure3", "figure4", "figure5")
NAMES = (
    *OF_PAPER,
    "models",
    "ablation",
    "apart",
    "curve",
    "lead",
    "orders",
    "starts",
    "two_orders",
    "harder",
    "hyperparameters",
    "variants",
    "edits",
    "merges",
    "sampled",
    "harm",
    "bases",
    "holdout",
)
ELSEWHERE = ("table2", "table3", "table5")
"""Those whose questions can be asked about another zoo, such as the paper's own."""

SEARCHED = ("table2", "table3", "table4", "table5", "figure3", "figure4", "orders", "two_orders", "models", "ablation")
"""Those whose models can be searched by successive halving; the last six always are."""

_OTHER = "Run on another zoo than the sample zoo; its parts are drawn at random, by seed."


def run(name: str, context: Context) -> Result:
    """Run an experiment. Raises LoLError for a name that is none, Stopped, and what the experiment raises."""
    if name not in NAMES:
        raise LoLError(f"No experiment {name!r}. There are {', '.join(NAMES)}.")
    if context.zoo is not None and name not in ELSEWHERE:
        raise LoLError(f"{name} is about the sample zoos; on another zoo run {', '.join(ELSEWHERE)}.")
    if context.labels is not None and context.zoo is None:
        raise LoLError("The sample zoos have their labels: --labels is for another zoo, named with --zoo.")
    if context.searched and name not in SEARCHED:
        raise LoLError(f"{name} has no search by halving; {', '.join(SEARCHED)} have.")
    with needing("images"):
        result = cast("Result", import_module(f"lol_core.experiments.{name}").run(context))
    if context.zoo is not None:
        result = replace(result, title=f"{result.title}, asked about {context.zoo}", notes=[*result.notes, _OTHER])
    return replace(result, title=f"{result.title} (small run: the scores mean nothing)") if context.small else result
