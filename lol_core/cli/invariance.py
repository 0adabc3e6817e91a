"""The command `invariance`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import AsJson, Seed, err, print_json, print_table

GROUP_NAMES = "gl, o, permutation, scaling"


def invariance(
    checkpoint: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    *,
    lora: Annotated[Path, typer.Option(help="A LoRA file or PEFT folder.")],
    group: Annotated[str, typer.Option(help=f"{GROUP_NAMES}, or own: what acts on the file's own numbers.")] = "gl",
    condition: Annotated[float, typer.Option(help="Condition number of R, at least 1 (gl and scaling).")] = 10.0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    trials: int = 8,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """How far a model's prediction moves when the LoRA's factors are replaced by (UR, VR⁻ᵀ): the largest of several
    draws.
    """
    import torch

    from lol_core.collections.folder import load_file
    from lol_core.core.batch import stack
    from lol_core.core.groups import GL, named
    from lol_core.core.symmetry import TOLERANCES, act, promises, relative_change, sample_for, sample_own
    from lol_core.learning.checkpoint import Checkpoint

    precisions = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in precisions or not 1 <= condition < math.inf or trials < 1:
        raise typer.BadParameter("--dtype is float32 or float64, --condition and --trials are at least 1.")
    try:
        drawn_from = GL if group == "own" else named(group)  # of which every module's own group is a part
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with torch.no_grad():
        known = Checkpoint.load(checkpoint)
        one = load_file(lora, str(lora))
        model = known.model.to(precisions[dtype])
        batch = stack([one], known.spec, torch.float64).to(dtype=precisions[dtype])
        before = torch.from_numpy(known.task.decode(model(batch)))
        generator = torch.Generator().manual_seed(seed)
        draw = partial(sample_own, [one]) if group == "own" else partial(sample_for, group=drawn_from)
        draws = [draw(batch=batch, condition=condition, generator=generator) for _ in range(trials)]
        moved = [torch.from_numpy(known.task.decode(model(act(R, batch)))) for R in draws]
    changes = [relative_change(after, before) for after in moved]
    promised = promises(model.symmetry, drawn_from)
    report = {
        "model": known.title,
        "symmetry": None if model.symmetry is None else model.symmetry.key,
        "group": group,
        "condition": condition if drawn_from.conditioned else 1.0,
        "dtype": dtype,
        "trials": trials,
        "relative_change": max(changes),
        "promised": promised,
        "holds": max(changes) <= TOLERANCES[precisions[dtype]],
        "prediction_before": before[0].tolist(),
        "prediction_after": moved[changes.index(max(changes))][0].tolist(),
    }
    if as_json:
        print_json(report)
    else:
        print_table([{"": key, "value": value} for key, value in report.items()])
    if promised and not report["holds"] and dtype == "float32":
        err.print(
            f"Rounding moves it too, more with a larger condition number ({condition:g}): --dtype float64 tells.",
            highlight=False,
        )
