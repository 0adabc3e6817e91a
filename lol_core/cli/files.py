"""Commands that look at files: `probe`, `scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import (
    AT_A_TIME,
    WORKERS,
    Address,
    AsJson,
    LabelsFile,
    end_without_loras,
    err,
    on_cluster,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.collections.names import counted


def probe(path: Annotated[Path, typer.Argument(help="A LoRA file or PEFT folder.")], as_json: AsJson = False) -> None:
    """What a file's header says: dialect, modules, ranks, scales, base model. The weights are not read."""
    from lol_core.formats import probe as probe_file
    from lol_core.formats import suggest_base_model

    lora = probe_file(path)
    modules = [
        {
            "name": y.name,
            "kind": y.kind,
            "n": y.n,
            "m": y.m,
            "rank": y.rank,
            "alpha": y.alpha,
            "scale": y.scale,
            "dora": y.magnitude is not None,
            "dtype": y.dtype,
        }
        for y in lora.layers
    ]
    summary = {
        "path": str(path),
        "dialect": lora.dialect,
        "base_model": lora.base_model,
        "suggested_base_model": suggest_base_model(lora),
        "modules": len(modules),
        "ranks": list(lora.ranks),
        "parameters": lora.parameters,
        "dtypes": list(lora.dtypes),
    }
    if as_json:
        print_json(
            summary
            | {
                "modules": modules,
                "metadata": dict(lora.metadata),
                "extras": list(lora.extras),
                "notes": list(lora.notes),
            }
        )
        return
    print_table([{"": key, "value": value} for key, value in summary.items()])
    print_table(modules)
    for note in lora.notes:
        out.print(note, highlight=False)


def _number_or_cluster(workers: str | None) -> str | None:
    if workers and not workers.startswith("ray") and (not workers.isdecimal() or int(workers) < 1):
        raise typer.BadParameter("Give a number of files, ray, or ray://HOST:10001.")
    return workers


def scan(
    folder: Address,
    labels: LabelsFile = None,
    workers: Annotated[
        str | None, typer.Option(metavar=WORKERS, callback=_number_or_cluster, help=f"{AT_A_TIME}; or a Ray cluster.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every LoRA of a collection, and every file that is none, with the reason."""
    from lol_core.collections.opening import open_source

    with stoppable() as reporter:
        readers = int(workers) if workers and workers.isdecimal() else on_cluster(workers or "")
        zoo = open_source(folder, labels, reporter=reporter, readers=readers)
    loaded = [
        {
            "path": e.path,
            "dialect": e.dialect,
            "base_model": e.base_model,
            "modules": e.modules,
            "ranks": list(e.ranks),
            "parameters": e.parameters,
        }
        for e in zoo.entries
    ]
    refused = [{"path": e.path, "reason": e.reason} for e in zoo.refused]
    if as_json:
        about = {
            "folder": zoo.address,
            "fingerprint": zoo.fingerprint,
            "unjoined_labels": list(zoo.unjoined_labels),
            "join_column": zoo.join_column,
            "labels_problem": zoo.labels_problem,
            "remarks": list(zoo.remarks),
        }
        print_json(about | {"loaded": loaded, "refused": refused})
        end_without_loras(zoo)
        return
    print_table(loaded)
    if refused:
        out.print(f"Refused: {counted(len(refused), 'file')}.", highlight=False)
        print_table(refused)
    for sentence in (zoo.labels_problem, *zoo.remarks):
        if sentence:
            err.print(sentence, highlight=False, soft_wrap=True)
    held, columns = counted(len(loaded), "LoRA"), counted(zoo.labels.shape[1], "label column")
    out.print(f"{held}, {len(refused):,} refused, {columns}.", highlight=False)
    if zoo.join_column is not None:
        nobody = len(zoo.unjoined_labels)
        rest = f"; {nobody} of its rows name no LoRA here, such as {zoo.unjoined_labels[0]!r}" if nobody else ""
        without = zoo.labels.index[zoo.labels.isna().all(axis=1)]
        if len(without):
            rest += f"; {counted(len(without), 'LoRA')} without a label, such as {without[0]}"
        out.print(f"Labels are joined by the column {zoo.join_column!r}{rest}.", highlight=False, soft_wrap=True)
    end_without_loras(zoo)
