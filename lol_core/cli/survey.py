"""`survey` and `duplicates`: what the weights of a whole folder say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lol_core.cli.console import (
    KEPT,
    Address,
    AsJson,
    Workers,
    end_without_loras,
    err,
    interrupted,
    on_cluster,
    open_collection,
    out,
    print_json,
    print_table,
    stoppable,
)
from lol_core.collections.names import counted

if TYPE_CHECKING:
    from lol_core.collections.entry import Entry
    from lol_core.collections.source import Source
    from lol_core.insight.survey import Survey

STOPPED = f"Stopped before the end. {KEPT}"


def survey(folder: Address, workers: Workers = "1", as_json: AsJson = False) -> None:
    """What the weights of every LoRA of a folder say: norm, effective rank, health. They are read once; Ctrl-C stops
    it with everything kept.
    """
    zoo, surveys = _surveyed(folder, workers)
    rows = [_row(entry, surveys[entry.path]) for entry in zoo.entries if entry.path in surveys]
    finished = len(rows) == len(zoo)
    if as_json:
        print_json({"folder": zoo.address, "finished": finished, "loras": rows, "refused": _refused(zoo)})
    else:
        shown = ("path", "dtypes", "norm", "effective_rank", "health")
        print_table([{key: row[key] for key in shown} | {"health": " ".join(_reasons(row))} for row in rows])
        ill = sum(bool(row["health"]) for row in rows)
        out.print(f"{len(rows)} of {len(zoo)} LoRAs read, {ill} with something odd about them.", highlight=False)
        _show_refused(zoo)
    if not finished:
        raise interrupted(STOPPED)
    end_without_loras(zoo)


def duplicates(
    folder: Address,
    workers: Workers = "1",
    tolerance: Annotated[
        float | None,
        typer.Option(help="‖ΔW − ΔW′‖ / ‖ΔW‖ up to which two are the same; by default what bfloat16 rounds."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """LoRAs of a folder that are the same function, whatever their names, factors, ranks or dtypes."""
    from lol_core.insight.duplicates import SAME
    from lol_core.insight.duplicates import duplicates as find_duplicates

    zoo, surveys = _surveyed(folder, workers)
    with stoppable() as reporter:
        table = find_duplicates(zoo, surveys, SAME if tolerance is None else tolerance, reporter)
        finished = len(surveys) == len(zoo) and not reporter.stopping
    groups = [
        [
            {"path": lora, "identical": bool(identical)}
            for lora, identical in zip(g["lora"], g["identical"], strict=True)
        ]
        for _, g in table.groupby("group")
    ]
    if as_json:
        print_json({"folder": zoo.address, "finished": finished, "groups": groups, "refused": _refused(zoo)})
    else:
        print_table(table.to_dict("records"))
        out.print(f"{len(groups)} functions have more than one file, of {len(zoo)} LoRAs.", highlight=False)
        _show_refused(zoo)
    if not finished:
        raise interrupted(STOPPED)
    end_without_loras(zoo)


def _refused(zoo: Source) -> list[dict[str, str | None]]:
    return [{"path": entry.path, "reason": entry.reason} for entry in zoo.refused]


def _show_refused(zoo: Source) -> None:
    if len(zoo) and len(zoo.refused):
        some = counted(len(zoo.refused), "file")
        text = f"Refused: {some}, such as {zoo.refused[0].path}: {zoo.refused[0].reason}"
        err.print(f"{text} `lol scan` names them all.", highlight=False, soft_wrap=True)


def _surveyed(folder: str, workers: str) -> tuple[Source, dict[str, Survey]]:
    from lol_core.insight.surveys import Surveys

    with stoppable() as reporter:
        zoo = open_collection(folder, reporter=reporter.part(0.0, 0.1), readers=on_cluster(workers))
        return zoo, Surveys(zoo).complete(reporter.part(0.1, 1.0), workers=workers)


def _row(entry: Entry, survey: Survey) -> dict[str, Any]:
    from lol_core.insight.health import health

    read = survey.problem is None
    return {
        "path": entry.path,
        "digest": entry.digest,
        "dialect": entry.dialect,
        "modules": entry.modules,
        "ranks": list(entry.ranks),
        "dtypes": ", ".join(entry.dtypes),
        "range": [float(bound) for bound in survey.range],
        "norm": survey.norm if read else None,
        "effective_rank": float(survey.effective_ranks.mean()) if read else None,
        "health": [{"ailment": mark.ailment.value, "reason": mark.reason} for mark in health(entry, survey)],
    }


def _reasons(row: dict[str, Any]) -> list[str]:
    return [mark["reason"] for mark in row["health"]]
