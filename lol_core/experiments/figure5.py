"""Figure 5: preprocessing and forward time over the GPT-3 family, from 125M to 175B parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lol_core.experiments.context import Context
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, Holds, Result, environment
from lol_core.experiments.timing import MEMORY_SHARE, Shape, Times, needs, time_model
from lol_core.insight.plots import across
from lol_core.learning.devices import find_device
from lol_core.learning.memory import free_memory
from lol_core.learning.models import ModelConfig

TITLE = "Figure 5: time over the GPT-3 family"
RANK = 4
FAMILY = {
    "125M": (12, 768),
    "350M": (24, 1024),
    "760M": (24, 1536),
    "1.3B": (24, 2048),
    "2.7B": (32, 2560),
    "6.7B": (32, 4096),
    "13B": (40, 5120),
    "175B": (96, 12288),
}
"""Layers and width of the eight sizes (Brown et al., 2020, table 2.1; the 13B model's width is printed there as
5140, which its heads do not divide).
"""
PARAMETERS = dict(zip(FAMILY, (125e6, 350e6, 760e6, 1.3e9, 2.7e9, 6.7e9, 13e9, 175e9), strict=True))
PREPROCESSED, PASSED, LARGEST_BATCH = 64, 512, 64
OTHERS = [name for name in FIVE if name != "dense"]
UNIT = ("gl_net", "125M")
BARELY = 10.0
"""By how much a forward pass may take longer at 1,400 times the parameters to be said to take barely longer."""
ROWS = 8
"""Of the factors whose passes tell what the number of modules takes from what the width takes."""


def shape(size: str) -> Shape:
    layers, width = FAMILY[size]
    return Shape(layers, width, width, RANK)


def run(context: Context) -> Result:
    device = find_device("auto")
    sizes = list(FAMILY)[:2] if context.small else list(FAMILY)
    times_of, refused = {}, []
    for i, size in enumerate(sizes):
        for model in FIVE:
            context.reporter.check("Times are only comparable within one run, so the same command begins it anew.")
            context.reporter.show(f"GPT-3 {size}: {FIVE[model].title}", i / len(sizes))
            need, free = needs(model, shape(size)), free_memory(device)
            batch = need.batch(2 if context.small else LARGEST_BATCH, free)
            if batch == 0:
                refused.append(
                    f"{FIVE[model].title} at {size} ({(need.weights + need.each) / 1e9:,.0f} GB of"
                    f" {MEMORY_SHARE * free / 1e9:,.0f} GB)"
                )
                continue
            times_of[model, size] = timed(model, shape(size), batch, context=context)
    ends = (sizes[0], sizes[-1])
    narrow = pd.DataFrame(
        {
            size: {model: narrow_forward(model, size, times_of[model, size].batch, context=context) for model in OTHERS}
            for size in ends
        }
    )
    whole = pd.DataFrame({size: {model: times_of[model, size].forward for model in OTHERS} for size in ends})
    gpu = device.type == "cuda"
    unit = 1.0 if gpu else times_of[UNIT].forward * PASSED
    seconds = pd.DataFrame(
        [
            (model, size, half, getattr(times, name) * count / unit, times.batch)
            for (model, size), times in times_of.items()
            for half, name, count in halves_of()
        ],
        columns=["model", "size", "half", "time", "batch"],
    )
    rows = [
        (
            f"{size}: {half}",
            FIVE[model].title,
            *(seconds.query("model == @model and size == @size and half == @half")["time"].tolist() or [np.nan]),
        )
        for half, _, _ in halves_of()
        for size in sizes
        for model in FIVE
    ]
    table = pd.DataFrame(rows, columns=["row", "column", "mean"]).assign(std=np.nan, paper=np.nan, paper_std=np.nan)
    ours = f"{FIVE[UNIT[0]].title}'s forward time at {UNIT[1]}"
    where = (
        f"seconds on {torch.cuda.get_device_name(device)}" if gpu else f"multiples of {ours}, on this CPU, in one run"
    )
    batches = seconds.groupby("model", sort=False)["batch"].min()
    smaller = ", ".join(
        f"{FIVE[str(model)].title} down to {batch}" for model, batch in batches.items() if batch < batches.max()
    )
    notes = [
        (
            f"Times are {where}: medians of an untrained model on synthetic factors of rank {RANK}, one square"
            " attention matrix a layer, scaled from a batch to "
            f"{PREPROCESSED} inputs for preprocessing and {PASSED} for the forward pass. Batches hold {LARGEST_BATCH}"
            " inputs or as many as fit "
            f"({smaller or 'here always all'})."
        ),
        (
            f"Refused beforehand, since float32 weights and one input would take more than {MEMORY_SHARE:.0%} of the"
            f" free memory: {'; '.join(refused) or 'none'}."
        ),
        ("The paper's figure has no numbers to stand beside these; it was measured on a GPU."),
    ]
    drawn = seconds.assign(
        x=seconds["size"].map(PARAMETERS),
        mean=seconds["time"],
        std=np.nan,
        model=seconds["model"].map(lambda name: FIVE[name].title),
    )
    drawn = drawn.rename(columns={"half": "panel"})
    units = dict.fromkeys(drawn["panel"], "seconds" if gpu else f"× {ours}")
    ticks = {PARAMETERS[size]: size for size in FAMILY}
    figure = across(drawn, "parameters of the base model", units, log_y=True, ticks=ticks)
    about: dict[str, Any] = {
        "family": FAMILY,
        "rank": RANK,
        "device": str(device),
        "refused": refused,
        "environment": environment(),
    }
    each = {(model, size): times.preprocess for (model, size), times in times_of.items()}
    found = findings(seconds, sizes, refused, max(each.values()), gpu=gpu)
    return Result("figure5", TITLE, table, [*found, cause(whole, narrow)], notes, figure, about)


def timed(model: str, of: Shape, batch: int, *, context: Context) -> Times:
    config = ModelConfig(width=context.budget.width) if context.budget.width else None
    device = find_device("auto")
    return time_model(model, of, batch, device, at_least=0.01 if context.small else 0.3, config=config)


def narrow_forward(model: str, size: str, batch: int, *, context: Context) -> float:
    """Seconds of a pass over as many modules as that size has, whose factors have ROWS rows."""
    return timed(model, replace(shape(size), n=ROWS, m=ROWS), batch, context=context).forward


def halves_of() -> tuple[tuple[str, str, int], ...]:
    """Name, field of `Times`, and number of inputs."""
    return (f"preprocessing {PREPROCESSED}", "preprocess", PREPROCESSED), (f"forward {PASSED}", "forward", PASSED)


def findings(
    seconds: pd.DataFrame, sizes: list[str], refused: list[str], slowest: float, *, gpu: bool
) -> list[Finding]:
    """slowest: seconds of the slowest preprocessing of one input."""
    forward = seconds[seconds["half"] == f"forward {PASSED}"].pivot_table(index="model", columns="size", values="time")[
        sizes
    ]
    growth = forward.loc[OTHERS, sizes[-1]] / forward.loc[OTHERS, sizes[0]]
    factors = shape(sizes[-1]).spec.parameters / shape(sizes[0]).spec.parameters
    held = {True: Holds.YES, False: Holds.NO}
    only_dense = all(text.startswith("MLP + Dense") for text in refused)
    return [
        Finding(
            "MLP + Dense runs out of memory for the largest models, the others do not.",
            held[bool(refused) and only_dense],
            f"refused beforehand: {f'{len(refused)} sizes of MLP + Dense' if only_dense else '; '.join(refused)}.",
        ),
        Finding(
            f"Forward passes of the others barely take longer from {sizes[0]} to {sizes[-1]}.",
            held[bool(growth.max() <= BARELY)],
            "; ".join(f"{FIVE[str(name)].title} {value:.1f} times" for name, value in growth.items())
            + f" as long, for factors {factors:.0f} times as large"
            + ("" if gpu else " (on a CPU; not tried on a GPU)")
            + f"; barely is at most {BARELY:g} times.",
        ),
        Finding(
            "Preprocessing stays below a second for each input.",
            held[slowest < 1],
            (
                "the slowest of all models and sizes that fit does, on this machine."
                if slowest < 1
                else f"the slowest takes {slowest:.1f} times that."
            ),
        ),
    ]


def cause(whole: pd.DataFrame, narrow: pd.DataFrame) -> Finding:
    """whole, narrow: seconds of a forward pass, of a model (row) at the smallest and the largest size (columns)."""
    first, last = whole.columns
    growth, share = narrow[last] / narrow[first], narrow[first] / whole[first]
    told = "; ".join(
        f"{FIVE[name].title} {growth[name]:.1f} times as long, {share[name]:.0%} of its whole pass at {first}"
        for name in OTHERS
    )
    return Finding(
        f"Passes over as many modules whose factors have {ROWS} rows take at most {BARELY:g} times as long from {first}"
        f" to {last}; the rest of the growth goes with their width.",
        Holds.YES if growth.max() <= BARELY else Holds.NO,
        f"{told}; there are {shape(last).layers / shape(first).layers:.0f} times as many modules.",
        in_paper=False,
    )
