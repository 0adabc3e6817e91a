"""`python -m benchmarks`: everything that is claimed of the speed, measured in one run, each beside its reference, into
one report with the raw samples. `--quick` only tries whether all of it runs; its numbers mean nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import figure5, models, others, startup, streaming
from benchmarks.measure import Claim, exponent, machine

RESULTS = Path(__file__).parent / "results"
CLUSTER = Path(__file__).parent.parent / "docs" / "howto" / "cluster.md"
Part = dict[str, Any]
"""What a part of the report holds: claims, growth, facts (what → a number), and the whole report of a script."""


def within(text: str, limit: float, taken: list[float]) -> Claim:
    """The claim that something takes at most so many seconds of the clock."""
    return Claim(text, 1.0, taken, [limit] * len(taken), f"the {limit:g} s asked for", "s of the clock")


def script(name: str, *options: object, out: str = "--out") -> Part:
    """The report of one of the scripts here, run in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options), out, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given")
        return {"report": json.loads(path.read_text())}


def of_models(quick: bool) -> Part:
    answers = within("Invariance, a new R for 128 modules of rank 4, four models", 0.2, models.answers(quick))
    claims = [*models.claims(quick), *others.claims(quick), answers]
    return {"claims": claims, "growth": models.growth(quick)}


def of_startup(quick: bool) -> Part:
    return {"claims": startup.claims(quick)}


def of_streaming(quick: bool) -> Part:
    return {"claims": streaming.claims(quick)}


def of_figure5(quick: bool) -> Part:
    return figure5.report(quick)


def of_index(quick: bool) -> Part:
    """A first index at three sizes, and many files opened again."""
    sizes = [50, 100] if quick else [500, 1000, 2000]
    rows, repeats = (200, 1) if quick else (100_000, 3)
    reports = [
        script("index", "--files", size, "--rows", rows if size == sizes[-1] else 100, "--repeats", repeats)["report"]
        for size in sizes
    ]
    times = {str(size): report["first"]["first index (s)"] for size, report in zip(sizes, reports, strict=True)}
    headers = reports[-1]["first"]["reading and parsing the headers (s)"]
    text = f"A first index of {sizes[-1]:,} kohya files of 264 modules"
    claim = Claim(
        text, 1.0, times[str(sizes[-1])], headers, "one thread that json.loads-es the headers", "s of the clock"
    )
    growth = {"files": {"exponent": exponent(sizes, times), "samples (s)": times}}
    many = reports[-1]["many"]
    about = f"among {many['files']:,} files"
    claims = [
        claim,
        within(f"Opened again, {about}", 1.0, many["opened again (s)"]),
        within(f"First page of the table, {about}", 0.5, many["first page (s)"]),
        within(f"A search that finds one, {about}", 0.5, many["search that finds one (s)"]),
    ]
    smallest, largest = (report["first"]["memory (MB)"] for report in (reports[0], reports[-1]))
    memory = {
        "memory of a first index, each further 1,000 files (MB)": (largest - smallest) / (sizes[-1] - sizes[0]) * 1000,
        f"memory to open {many['files']:,} files again (MB)": many["most memory, all included (MB)"],
    }
    return {"claims": claims, "growth": growth, "facts": memory, "report": reports[-1]}


def of_survey(quick: bool, published: Path | None = None, rival: str | None = None) -> Part:
    """Reading and surveying beside reading the bytes and multiplying once; beside a rival where one is given."""
    options: list[object] = ["--quick"] if quick else []
    options += ["--published", published] if published else []
    options += ["--rival", rival] if rival else []
    part = script("survey", *options, out="--results")
    claims = []
    for about, measured in part["report"].items():
        if not isinstance(measured, dict):
            continue
        rounds = measured["rounds_s"]
        if "rival" in measured:
            text, goal, against = f"Survey, {about}, start-up off both", 3.0, measured["rival"]
            ours, theirs = [one["ours"] for one in rounds], [one["rival"] for one in rounds]
        else:
            text, goal, against = f"Survey, {about}", 1 / 3, "reading the bytes and multiplying them once"
            ours, theirs = [one["survey"] for one in rounds], [one["bytes"] + one["product"] for one in rounds]
        claims.append(Claim(text, goal, ours, theirs, against))
    return part | {"claims": claims}


def of_many(quick: bool) -> Part:
    return {"facts": script("many", "--count", 1000 if quick else 100_000)["report"]}


def of_probe(quick: bool) -> Part:
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable,
            "-m",
            "benchmarks.probe_formats",
            "--count",
            "4" if quick else "200",
            "--results",
            place,
        ]
        subprocess.run(command, check=True, capture_output=True)
        return {"report": json.loads((Path(place) / "probe.json").read_text())}


def of_cost(quick: bool) -> Part:
    """Also rewrites the table of docs/howto/cluster.md, unless it is only tried."""
    if quick:
        return script("cost", "--measure", "--count", 1, out="--results")
    return script("cost", "--measure", "--count", 8, "--document", CLUSTER, out="--results")


def of_pages(quick: bool) -> Part:
    """Among many LoRAs of few modules, and among fewer with as many as Stable Diffusion's have."""
    return browsed([(50, 3), (20, 264)] if quick else [(10_000, 3), (900, 264)], 1 if quick else 3)


def of_browse(quick: bool) -> Part:
    """A collection of 100,000 in the browser: indexed, surveyed, de-duplicated, mapped and looked through."""
    part = browsed([(60, 1)] if quick else [(100_000, 1)], 1 if quick else 2)
    [(about, report)] = part["report"].items()
    first = {
        "first index (s)": "first index: done after",
        "index, weights and duplicates (s)": "weights read after",
        "first map (s)": "first map drawn after",
        "first predictions of a model (s)": "a model's first predictions after",
        "most memory of the app (GB)": "most memory of the app (GB)",
        "a switch between empty pages of Streamlit (s)": "switch between empty pages of Streamlit, median",
    }
    return part | {"facts": {f"{title}, {about}": report[key] for title, key in first.items()}}


def browsed(collections: Sequence[tuple[int, int]], repeats: int) -> Part:
    """The pages among so many LoRAs of so many modules each."""
    claims, reports = [], {}
    for count, modules in collections:
        report = script("pages", "--count", count, "--modules", modules, "--repeats", repeats)["report"]
        about = f"among {count:,} LoRAs of {modules} modules"
        slowest = max(report["warm page switch, median"].values())
        claims += [
            within(f"The slowest switch between pages, {about}", 1.0, [slowest]),
            within(f"A filter's redraw, {about}", 0.5, [report["filter keystroke to redraw, median"]]),
        ]
        reports[about] = report
    return {"claims": claims, "report": reports}


def of_scatter(quick: bool) -> Part:
    return script("scatter", *([1000] if quick else []), "--repeats", 1 if quick else 3)


PARTS: Mapping[str, Callable[[bool], Part]] = {
    "startup": of_startup,
    "models": of_models,
    "streaming": of_streaming,
    "figure5": of_figure5,
    "index": of_index,
    "survey": of_survey,
    "many": of_many,
    "probe": of_probe,
    "cost": of_cost,
    "pages": of_pages,
    "browse": of_browse,
    "scatter": of_scatter,
}


def standing(path: Path, quick: bool, about: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of a report that is there already, among which those measured anew take their places; none where it
    is of another kind or another machine.
    """
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"quick": None}
    if report["quick"] != quick or any(report["machine"][name] != about[name] for name in ("processor", "cores")):
        return {}
    parts: dict[str, Part] = report["parts"]
    return {name: part | {"claims": [Claim.of(one) for one in part.get("claims", [])]} for name, part in parts.items()}


def table(about: Mapping[str, Any], parts: Mapping[str, Part], quick: bool) -> str:
    """The report as Markdown."""
    lines = ["# Speed", ""]
    lines += ["**A quick try: these numbers mean nothing.**", ""] if quick else []
    lines += ["`make bench`. " + "; ".join(f"{name}: {value}" for name, value in about.items()) + ".", ""]
    if left_out := [name for name in PARTS if name not in parts]:
        lines += [f"Not run: {', '.join(left_out)}.", ""]
    lines += ["| claim | times as fast | as | goal | |", "|---|---|---|---|---|"]
    for part in parts.values():
        for claim in part.get("claims", []):
            held = "holds" if claim.holds else "**does not hold**"
            lines.append(f"| {claim.text} | {claim.ratio:.2f} | {claim.against} | {claim.goal:g} | {held} |")
    lines += ["", "| time grows with | as its power |", "|---|---|"]
    for part in parts.values():
        lines += [f"| {what} | {grown['exponent']:.2f} |" for what, grown in part.get("growth", {}).items()]
    lines += ["", "| measured | |", "|---|---|"]
    for part in parts.values():
        lines += [f"| {what} | {value:,.3g} |" for what, value in part.get("facts", {}).items()]
    lines += ["", "| part | measured | load before | seconds | |", "|---|---|---|---|---|"]
    for name, part in parts.items():
        when = f"{part['measured']} | {part['load before']:g}"
        lines.append(f"| {name} | {when} | {part['seconds']:.0f} | {part.get('failed', '')} |")
    return "\n".join([*lines, "", "Raw samples and the parts' own reports: `report.json`.", ""])


def main(
    quick: Annotated[bool, typer.Option(help="Try whether everything runs; the numbers mean nothing.")] = False,
    *,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to run, of {', '.join(PARTS)}.")] = None,
    out: Annotated[Path, typer.Option(help="A folder for report.json and report.md.")] = RESULTS,
    published: Annotated[Path | None, typer.Option(help="A folder of real LoRAs, to be surveyed.")] = None,
    rival: Annotated[str | None, typer.Option(help="A command with {folder} and {out} that surveys them too.")] = None,
) -> None:
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"There is no part {', '.join(unknown)}. Choose of {', '.join(PARTS)}.")
    out.mkdir(parents=True, exist_ok=True)
    about, parts = machine(), dict[str, Part]()
    if only:
        parts |= standing(out / "report.json", quick, about)
    chosen = dict(PARTS)
    if published and "survey" in chosen:
        chosen["survey"] = partial(of_survey, published=published, rival=rival)
    for name in only or chosen:
        started, load = time.perf_counter(), round(os.getloadavg()[0], 1)
        try:
            parts[name] = chosen[name](quick)
        except Exception as error:  # the other parts are measured all the same
            parts[name] = {"failed": f"{type(error).__name__}: {error}"}
        seconds, now = time.perf_counter() - started, time.strftime("%Y-%m-%d %H:%M")
        parts[name] |= {"seconds": seconds, "measured": now, "load before": load}
        print(f"{name}: {parts[name].get('failed') or 'measured'}, {parts[name]['seconds']:.0f} s", file=sys.stderr)
        parts = {part: parts[part] for part in PARTS if part in parts}
        whole = {"quick": quick, "machine": about, "parts": parts}
        (out / "report.json").write_text(json.dumps(whole, indent=1, default=Claim.to_dict) + "\n")
        (out / "report.md").write_text(table(about, parts, quick))
    raise typer.Exit(int(any("failed" in part for part in parts.values())))


if __name__ == "__main__":
    typer.run(main)
