"""`python -m lol_core store …`: what was computed from LoRAs and is kept in the user's cache."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import AsJson, out, print_json, print_table
from lol_core.collections.cache import cache_folder

store = typer.Typer(help="Show or clear what was computed from LoRAs and kept.", no_args_is_help=True)


class Kind(StrEnum):
    """As `collections.store.Kept`, which takes PyTorch's time to import; and indexes, which hold what headers and
    surveys of a collection say.
    """

    SURVEYS = "surveys"
    FACTORS = "factors"
    LATENTS = "latents"
    ANSWERS = "answers"
    MAPS = "maps"
    INDEXES = "indexes"


@store.command()
def show(as_json: AsJson = False) -> None:
    """What is kept, the last used first; and the index of each collection, which no limit counts."""
    from lol_core.collections.store import Item, Store

    kept = Store()
    items = [(item, kept.path(item)) for item in kept.show()]
    indexes = [(Item(0, Kind.INDEXES, "", None, of.st_size, of.st_mtime), file) for file, of in _indexes()]
    total, others = (sum(item.bytes for item, _ in some) for some in (items, indexes))
    rows = [
        {
            "kind": item.kind,
            "records": item.places,
            "bytes": item.bytes,
            "used": datetime.fromtimestamp(item.used).astimezone().isoformat(timespec="seconds"),
            "file": os.path.relpath(file, kept.folder),
        }
        for item, file in (*items, *indexes)
    ]
    if as_json:
        limits = {"bytes": total, "limit": kept.limit, "bytes of indexes": others}
        print_json({"folder": str(kept.folder)} | limits | {"items": rows})
        return
    print_table(rows)
    out.print(
        f"{total / 1e9:.3g} GB of at most {kept.limit / 1e9:.3g} GB (LOL_STORE_GB) in {kept.folder}, and"
        f" {others / 1e9:.3g} GB of indexes.",
        highlight=False,
    )


@store.command()
def clear(kind: Annotated[Kind | None, typer.Option(help="Only this kind; indexes go only so.")] = None) -> None:
    """Delete what is kept. It is computed anew when it is needed. Indexes stay unless they are named: they hold the
    surveys of their collections, for which all weights were read.
    """
    from lol_core.collections.store import Store

    if kind == Kind.INDEXES:
        indexes = _indexes()
        size = sum(of.st_size for _, of in indexes)
        for file, _ in indexes:
            file.unlink(missing_ok=True)
    else:
        size = Store().clear(kind)
    out.print(f"{size / 1e9:.3g} GB deleted.", highlight=False)


def _indexes() -> list[tuple[Path, os.stat_result]]:
    """Their files, what SQLite keeps beside each before it, and goes when the last command that reads it ends."""
    found = []
    for file in sorted((cache_folder() / "index").glob("*.sqlite*"), reverse=True):
        with suppress(FileNotFoundError):
            found.append((file, file.stat()))
    return found
