"""`compare` and `nearest`: LoRAs beside each other, by what they do and not by their factors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import (
    Address,
    AsJson,
    Workers,
    open_collection,
    out,
    print_json,
    print_table,
    reported,
    stoppable,
)
from lol_core.errors import DataMissingError


def compare(
    first: Annotated[Path, typer.Argument(help="A LoRA file or PEFT folder.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Two LoRAs module by module: norms, cosine and distance of their updates, and whether they are the same."""
    from lol_core.collections.folder import load_file
    from lol_core.insight.anatomy import Comparison

    with reported():
        one, two = (load_file(path, str(path)) for path in (first, second))
        both = Comparison.of(one, two)
        if both.table.empty:
            raise DataMissingError("They share no module of one shape: they belong to different base models.")
    only = {"only in the first": len(one.layers), "only in the second": len(two.layers)}
    report = {
        "same function": both.same,
        "cosine": both.cosine,
        "distance": both.distance,
        "shared modules": len(both.table),
        **{name: count - len(both.table) for name, count in only.items()},
    }
    if as_json:
        print_json(report | {"modules": both.table.rename_axis("module").reset_index().to_dict("records")})
        return
    print_table(both.table.rename_axis("module").reset_index().to_dict("records"))
    for name, value in report.items():
        out.print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}", highlight=False)


def nearest(
    folder: Address,
    lora: Annotated[str, typer.Argument(help="Which LoRA of the collection: its path there, or its name.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """The LoRAs of a collection whose updates are nearest to one of them. Weights are read once, and kept."""
    from lol_core.insight.neighbours import nearest as find_nearest
    from lol_core.insight.surveys import Surveys

    with reported(), stoppable() as reporter:
        source = open_collection(folder, reporter=reporter.part(0.0, 0.1))
        by_name = {name: id for id, name in source.names.items()}
        id = lora if lora in source.by_id else by_name.get(lora)
        if id is None:
            raise DataMissingError(f"{lora}: no such LoRA in {source.address}. `lol scan` lists them.")
        surveys = Surveys(source).complete(reporter.part(0.1, 1.0), workers=workers)
        table = find_nearest(source, surveys, id, count)
    rows = table.rename_axis("lora").reset_index().to_dict("records")
    if as_json:
        print_json({"lora": id, "nearest": rows})
    else:
        print_table(rows)
