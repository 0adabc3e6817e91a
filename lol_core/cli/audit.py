"""`health` and `audit`: what is wrong with the LoRAs of a collection, with an exit code for pipelines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lol_core import __version__
from lol_core.cli.console import (
    KEPT,
    Address,
    AsJson,
    Workers,
    end_without_loras,
    on_cluster,
    open_collection,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.errors import DataMissingError

if TYPE_CHECKING:
    from lol_core.collections.source import Source
    from lol_core.insight.audit import Remark


class Fail(StrEnum):
    """From which level on a remark makes the command fail; the names are SARIF's."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"
    NEVER = "never"


FailOn = Annotated[Fail, typer.Option("--fail-on", help="End with exit code 2 when something is at least as bad.")]


def health(folder: Address, workers: Workers = "1", fail_on: FailOn = Fail.NEVER, as_json: AsJson = False) -> None:
    """What is refused, broken, never trained or contradicts itself in a collection; nothing of what is well."""
    from lol_core.insight.audit import audit as remarks_of
    from lol_core.insight.surveys import Surveys

    with stoppable() as reporter:
        source = open_collection(folder, reporter=reporter.part(0.0, 0.1), readers=on_cluster(workers))
        surveys = Surveys(source).complete(reporter.part(0.1, 1.0), workers=workers)
        reporter.check(KEPT)
        remarks = list(remarks_of(source, surveys))
    _show(remarks, source, fail_on, as_json)


def audit(
    folder: Address,
    *,
    checkpoint: Annotated[list[Path] | None, typer.Option(help="A trained model to ask; may be given often.")] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="Where each model's training collection is, for models that keep nothing of it."),
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="Also write a SARIF file, which code hosts show.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a SARIF file that is there.")] = False,
    workers: Workers = "1",
    fail_on: FailOn = Fail.ERROR,
    as_json: AsJson = False,
) -> None:
    """Health, copies, what models say, and whether they can know, of every LoRA of a collection."""
    from lol_core.collections.durable import replace_file
    from lol_core.insight.audit import as_sarif
    from lol_core.insight.audit import audit as remarks_of
    from lol_core.insight.duplicates import duplicates
    from lol_core.insight.surveys import Surveys
    from lol_core.learning.checkpoint import Checkpoint
    from lol_core.learning.training import remember

    with stoppable() as reporter:
        if trained_on and len(trained_on) != len(checkpoint or ()):
            raise DataMissingError("Give --trained-on once for each --checkpoint, or not at all.")
        if sarif is not None and sarif.exists() and (sarif.is_dir() or not force):
            raise DataMissingError(f"{sarif} is there already. Name another file, or say --force to replace a file.")
        models = [Checkpoint.load(path) for path in checkpoint or ()]
        for model, address in zip(models, trained_on or (), strict=False):
            remember(model, open_collection(address))
        source = open_collection(folder, reporter=reporter.part(0.0, 0.1), readers=on_cluster(workers))
        surveys = Surveys(source).complete(reporter.part(0.1, 0.6), workers=workers)
        reporter.check(KEPT)
        same = duplicates(source, surveys, reporter=reporter.part(0.6, 0.7))
        remarks = list(remarks_of(source, surveys, same, models, reporter=reporter.part(0.7, 1.0), workers=workers))
        if sarif is not None:
            sarif.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(as_sarif(remarks, __version__), indent=1) + "\n"
            replace_file(sarif, lambda new: new.write_text(text, encoding="utf-8"))
    _show(remarks, source, fail_on, as_json)


def _show(remarks: Sequence[Remark], source: Source, fail_on: Fail, as_json: bool) -> None:
    rows = [{"lora": r.path, "level": r.level.name.lower(), "about": r.rule, "message": r.message} for r in remarks]
    bad = [remark for remark in remarks if fail_on != Fail.NEVER and remark.level >= type(remark.level)[fail_on.name]]
    if as_json:
        print_json({"loras": len(source), "failed": bool(bad), "remarks": rows})
    else:
        print_table(rows)
        out.print(f"{len({remark.path for remark in remarks})} files have remarks; {len(source)} LoRAs were looked at.")
    if bad:
        raise typer.Exit(2)
    end_without_loras(source)
