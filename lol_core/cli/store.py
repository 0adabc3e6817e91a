"""`python -m lol_core store …`: what was computed from LoRAs and is kept in the user's cache."""

from __future__ import annotations

import os
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer

from lol_core.cli.console import AsJson, out, print_json, print_table, reported

store = typer.Typer(help="Show or clear what was computed from LoRAs and kept.", no_args_is_help=True)


class Kind(StrEnum):
    """As `collections.store.Kept`, which takes PyTorch's time to import."""

    FACTORS = "factors"
    LATENTS = "latents"
    ANSWERS = "answers"
    MAPS = "maps"


@store.command()
def show(as_json: AsJson = False) -> None:
    """What is kept, the last used first."""
    from lol_core.collections.store import Store

    with reported():
        kept = Store()
        items = kept.show()
    total = sum(item.bytes for item in items)
    rows = [
        {
            "kind": item.kind,
            "records": item.places,
            "bytes": item.bytes,
            "used": datetime.fromtimestamp(item.used).astimezone().isoformat(timespec="seconds"),
            "file": os.path.relpath(kept.path(item), kept.folder),
        }
        for item in items
    ]
    if as_json:
        print_json({"folder": str(kept.folder), "bytes": total, "limit": kept.limit, "items": rows})
        return
    print_table(rows)
    out.print(
        f"{total / 1e9:.3g} GB of at most {kept.limit / 1e9:.3g} GB (LOL_STORE_GB) in {kept.folder}.", highlight=False
    )


@store.command()
def clear(kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None) -> None:
    """Delete what is kept. It is computed anew when it is needed."""
    from lol_core.collections.store import Store

    with reported():
        size = Store().clear(kind)
    out.print(f"{size / 1e9:.3g} GB deleted.", highlight=False)
