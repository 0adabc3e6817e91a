"""`compare` and `nearest`: LoRAs beside each other, by what they do and not by their factors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lol_core.cli.console import (
    KEPT,
    Address,
    AsJson,
    Readers,
    Workers,
    on_cluster,
    open_collection,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.cli.inputs import id_of, only_of, read_all
from lol_core.core.progress import Reporter
from lol_core.errors import DataMissingError

if TYPE_CHECKING:
    from lol_core.core.lora import LoRA


def compare(
    first: Annotated[str, typer.Argument(help="A LoRA: a file, a PEFT folder, or an address that holds one LoRA.")],
    *,
    second: Annotated[str, typer.Argument(help="Another.")],
    collection: Annotated[
        str | None,
        typer.Option("--of", metavar="FOLDER|ARCHIVE|PATTERN|ADDRESS", help="The collection that both are named in."),
    ] = None,
    workers: Readers = None,
    as_json: AsJson = False,
) -> None:
    """Two LoRAs module by module: norms, cosine and distance of their updates, and whether they are the same."""
    from lol_core.insight.anatomy import Comparison

    with stoppable() as reporter:
        one, two = _pair(first, second, collection, reporter, readers=workers)
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


def _pair(first: str, second: str, collection: str | None, reporter: Reporter, *, readers: int | None) -> list[LoRA]:
    """Both LoRAs with their weights. Raises DataMissingError when a name means none, or more than one."""
    opening = reporter.part(0.0, 0.5)
    if collection is not None:
        source = open_collection(collection, reporter=opening, readers=readers)
        loads = [source.reader(id_of(source, name)) for name in (first, second)]
    else:
        loads = [
            only_of(address, f"lol compare ONE ANOTHER --of {address}", opening, readers) for address in (first, second)
        ]
    return read_all(loads, reporter.part(0.5, 1.0), readers)


def nearest(
    folder: Address,
    *,
    lora: Annotated[str, typer.Argument(help="Which LoRA of the collection: its path there, or its name.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    workers: Workers = "1",
    as_json: AsJson = False,
) -> None:
    """The LoRAs of a collection whose updates are nearest to one of them. Weights are read once, and kept."""
    from lol_core.insight.neighbours import nearest as find_nearest
    from lol_core.insight.surveys import Surveys

    with stoppable() as reporter:
        source = open_collection(folder, reporter=reporter.part(0.0, 0.1), readers=on_cluster(workers))
        own = {*source.ids, *source.names.values(), Path(folder).name}
        if len(source) == 1 and not source.refused and lora in own:
            raise DataMissingError(
                f"{folder} holds one LoRA, which has no neighbours there. Name the collection that it lies in, and then"
                " the LoRA."
            )
        id = id_of(source, lora)
        surveys = Surveys(source).complete(reporter.part(0.1, 1.0), workers=workers)
        reporter.check(KEPT)
        table = find_nearest(source, surveys, id, count)
    rows = table.rename_axis("lora").reset_index().to_dict("records")
    if as_json:
        print_json({"lora": id, "nearest": rows})
    elif not rows:
        print("It is zero, or no other LoRA of the collection adapts a module of it.")
    else:
        print_table(rows)
