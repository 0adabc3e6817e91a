"""The command `experiment`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import AsJson, Count, LabelsFile, Workers, out, print_json, print_table, stoppable
from lol_core.collections.names import user_path
from lol_core.experiments import NAMES

SAMPLES = Path("sample_loras")
SAMPLE_ZOOS = ("faces", "emojinette", "glosses")


def experiment(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")],
    *,
    out_folder: Annotated[
        Path,
        typer.Option("--out", help="results.md and the folder results/ go there."),
    ],
    fits: Annotated[
        Path | None,
        typer.Option(help="Where fits are kept; those there are not made again. By default fits in --out."),
    ] = None,
    zoo: Annotated[
        str,
        typer.Option("--zoo", help="The folder of the sample zoos, or, for tables 2, 3 and 5, another zoo's address."),
    ] = str(SAMPLES),
    labels: LabelsFile = None,
    seeds: Count = 5,
    halving: Annotated[
        bool,
        typer.Option(
            "--halving",
            help="Tables 2 to 5: search each model by successive halving over widths, heads, batches and rates on one"
            " split, with the authors' own settings beside it; table 2 by five times five folds. Figures 3 and 4,"
            " orders, two_orders, models and ablation always do.",
        ),
    ] = False,
    small: Annotated[
        bool, typer.Option(help="A few LoRAs, one seed, two epochs: shows how it runs; the scores mean nothing.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Where figure4 and starts put the LoRAs they make.")] = Path("build"),
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch; the last digits depend on it.")] = 1,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """Repeat a table or figure of the paper on the sample zoos, beside the paper's numbers. Ctrl-C stops it; the
    same command goes on.
    """
    import torch

    from lol_core.experiments import run as run_experiment
    from lol_core.experiments.context import Context
    from lol_core.experiments.result import blocks, write_report
    from lol_core.experiments.search import SMALL, SMALL_SEARCH, Budget, Halving

    torch.set_num_threads(threads)
    with stoppable() as reporter:
        search = None if not halving else SMALL_SEARCH if small else Halving()
        budget = replace(SMALL if small else Budget(), seeds=1 if small else seeds, search=search)
        samples = user_path(zoo)
        other = None if any((samples / name).is_dir() for name in SAMPLE_ZOOS) or zoo == str(SAMPLES) else zoo
        context = Context(samples, fits or out_folder / "fits", budget, reporter, work, workers, other, labels)
        result = run_experiment(name, context)
        place = result.write(out_folder / "results")
        report = write_report(out_folder)
    if as_json:
        print_json(
            {
                "name": name,
                "title": result.title,
                "cells": result.cells.to_dict("records"),
                "findings": [vars(f) for f in result.findings],
                "settings": result.settings,
                "written": [str(place), str(report)],
            }
        )
        return
    for heading, table in blocks(result.cells):
        print_table(
            [{heading: row} | values for row, values in zip(table.index, table.to_dict("records"), strict=True)]
        )
    for heading, findings in result.judged:
        out.print(heading, style="bold")
        for finding in findings:
            out.print(f"{finding.holds}: {finding.paper} Here: {finding.here}", highlight=False, soft_wrap=True)
    out.print(f"Written to {place}", highlight=False, soft_wrap=True)
