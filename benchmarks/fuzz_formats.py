"""`python -m benchmarks.fuzz_formats`: damaged files by the hundred thousand, none of which may take the program down.

Each input is opened by `probe` and by `read`. A crash is any exception but the program's own family; a hang is more
than two seconds of processor time; a disagreement is one that reads what the other refuses, or tells it otherwise; a
breach is a LoRA against one of the invariants below. The run can be stopped and goes on where it was.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import re
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from benchmarks.fuzz_inputs import inputs
from benchmarks.fuzz_seeds import Seed, own_seeds, seeds_in
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.formats import probe, read

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 2.0
"""Seconds of processor time for one input."""
MEMORY = 12 * 2**30
FACTOR_WORD = re.compile(r"lora_|hada_|lokr_")


@dataclass
class Tally:
    """What a run has found: outcomes, and for each distinct finding how often and by which inputs. mended: findings
    whose inputs pass since the code was changed during the run.
    """

    number: int
    next: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    containers: Counter[str] = field(default_factory=Counter)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    mended: dict[str, dict[str, Any]] = field(default_factory=dict)
    last_new: int = 0

    def add(self, finding: str, index: int, seed: str) -> None:
        if finding not in self.findings:
            self.findings[finding] = {"count": 0, "inputs": []}
            self.last_new = index
        known = self.findings[finding]
        known["count"] += 1
        if len(known["inputs"]) < 3:
            known["inputs"].append([index, seed])


def examine(path: Path) -> tuple[str, str | None]:
    """(outcome, finding or None) of one input. Outcomes: read, refused, or the kind of the finding."""
    answers: list[tuple[str, Any]] = []
    for open_ in (probe, read):
        try:
            answers.append(("read", open_(path)))
        except LoLError as error:
            answers.append(("refused", error))
        except Exception as error:  # the very thing that is looked for
            return "crash", f"crash in {open_.__name__}: {_place(error)}"
    (first, probed), (second, loaded) = answers
    if first != second:
        refusal = str(loaded if second == "refused" else probed)
        return "disagreement", f"probe: {first}, read: {second}: {_kind_of(refusal)}"
    if first == "refused":
        if type(probed) is not type(loaded) or str(probed) != str(loaded):
            return "disagreement", f"two reasons: {_kind_of(str(probed))} / {_kind_of(str(loaded))}"
        return "refused", None
    if difference := _difference(probed, loaded):
        return "disagreement", f"probe and read differ in {difference}"
    if breach := _breach(loaded):
        return "breach", breach
    return "read", None


def _place(error: BaseException) -> str:
    """Where an exception came from: its type and the last of our own lines."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "lol_core" in frame.filename]
    where = f"{Path(own[-1].filename).name}, {own[-1].name}: {own[-1].line}" if own else "elsewhere"
    return f"{type(error).__name__} at {where}"


def _kind_of(sentence: str) -> str:
    """A refusal without its names and numbers, so that one kind is one finding."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"'.*?'|\(.*?\)|\[.*?\]", "…", sentence))[:120]


def _difference(probed: LoRA, loaded: LoRA) -> str | None:
    def summary(lora: LoRA) -> dict[str, Any]:
        return {
            "headers": lora.headers,
            "scales": [repr(layer.scale) for layer in lora.layers],
            "alphas": [repr(layer.alpha) for layer in lora.layers],
            "dtypes": [layer.dtype for layer in lora.layers],
            "notes": lora.notes,
            "extras": lora.extras,
            "metadata": repr(lora.metadata),
            "base": lora.base_model,
            "dialect": lora.dialect,
        }

    one, two = summary(probed), summary(loaded)
    return next((key for key in one if one[key] != two[key]), None)


def _breach(lora: LoRA) -> str | None:
    for layer in lora.layers:
        if not math.isfinite(layer.scale):
            return "a scale that is not finite"
        if layer.kind in (Kind.LINEAR, Kind.CONV) and layer.rank > max(layer.n, layer.m):
            return "a rank above both sides"
        if min(layer.n, layer.m, layer.rank) == 0:
            return "a layer without numbers"
    if not lora.layers:
        return "a LoRA without layers"
    if not lora.notes and any(FACTOR_WORD.search(key) for key in lora.extras):
        return "a factor among the extras and no note"
    return None


def work(seeds: list[Seed], tally: Tally, stop: int, beat: Callable[[int], None], *, folder: Path) -> Tally:
    """Examine inputs up to `stop`, which is not among them. beat(i) is called before each."""
    started = time.monotonic()
    for index, seed, main, files in inputs(seeds, tally.number, tally.next):
        if index >= stop:
            break
        beat(index)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        outcome, finding = examine(folder / main)
        tally.outcomes[outcome] += 1
        tally.containers[f"{Path(main).suffix} {outcome}"] += 1
        if finding:
            tally.add(f"{outcome}: {finding}", index, seed)
        for name in files:
            (folder / name).unlink()
        tally.next = index + 1
    tally.seconds += time.monotonic() - started
    return tally


# ------------------------------------------------------------------------------------------------- watched processes


def _child(seeds: list[Seed], tally: Tally, stop: int, place: Any, *, answer: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def beat(index: int) -> None:
        place.value = index

    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=shared) as folder:
        answer.send(work(seeds, tally, stop, beat, folder=Path(folder)))


def watched(seeds: list[Seed], tally: Tally, stop: int) -> Tally:
    """`work` in a process of its own, which is ended when one input takes longer than the limit, or ends by itself."""
    context = multiprocessing.get_context("fork")
    place = context.Value("q", tally.next, lock=False)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(seeds, tally, stop, place), kwargs={"answer": sender})
    child.start()
    sender.close()
    process, index, spent, since = psutil.Process(child.pid), -1, 0.0, time.monotonic()
    reason = "crash"
    while not receiver.poll(0.25):
        if not child.is_alive():
            break
        now = sum(process.cpu_times()[:2])
        if place.value != index:
            index, spent, since = place.value, now, time.monotonic()
        elif now - spent > LIMIT or time.monotonic() - since > 60:
            reason = "hang"
            child.kill()
            break
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        lost = place.value
        # What the lost process had counted up to that input is counted again, without it.
        before = watched(seeds, tally, lost) if lost > tally.next else tally
        before.outcomes[reason] += 1
        before.add(f"{reason}: the process ended with {child.exitcode}", lost, "")
        before.next = lost + 1
        return before


def warm_up(seeds: list[Seed]) -> None:
    """Open every seed as it is, so that what PyTorch loads when it is first needed is nobody's two seconds."""
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            for name, content in seed.files.items():
                (Path(folder) / name).write_bytes(content)
            outcome, finding = examine(Path(folder) / seed.main)
            if finding:
                print(f"{seed.name}, as it is: {outcome}: {finding}")


def again(seeds: list[Seed], tally: Tally) -> None:
    """Look once more at the inputs of all findings: those that pass now are mended."""
    for key, finding in list(tally.findings.items()):
        if any(watched(seeds, Tally(tally.number, next=index), index + 1).findings for index, _ in finding["inputs"]):
            continue
        tally.mended[key] = tally.findings.pop(key)
        tally.outcomes[key.partition(":")[0]] -= finding["count"]
        tally.outcomes["mended"] += finding["count"]


def report(tally: Tally, seeds: list[Seed]) -> str:
    bad = {key: tally.outcomes[key] for key in ("crash", "hang", "disagreement", "breach")}
    lines = [
        "# Damaged files",
        "",
        "`python -m benchmarks.fuzz_formats`: every input opened by `probe` and `read`, each of them mutated from a"
        " case of the field, a published file or one of our own writers' files. An input follows from its number.",
        "",
        f"- inputs: {tally.next:,} (random seed {tally.number}, from {len(seeds)} files;"
        f" nothing new since input {tally.last_new:,})",
        f"- read: {tally.outcomes['read']:,}; refused with a reason: {tally.outcomes['refused']:,}",
        f"- crashes: {bad['crash']:,}; hangs over {LIMIT:.0f} s of processor time: {bad['hang']:,};"
        f" disagreements of probe and read: {bad['disagreement']:,}; breaches of an invariant: {bad['breach']:,}",
        f"- machine: {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__};"
        f" {tally.seconds:,.0f} s",
        "",
        "| file | read | refused |",
        "|---|---|---|",
    ]
    for suffix in sorted({key.split()[0] for key in tally.containers}):
        lines.append(
            f"| {suffix} | {tally.containers[f'{suffix} read']:,} | {tally.containers[f'{suffix} refused']:,} |"
        )
    if tally.mended:
        lines += ["", "Found during the run and mended since; their inputs pass, and tests hold their kinds:", ""]
        lines += [f"- {key} ({value['count']:,})" for key, value in tally.mended.items()]
    if tally.findings:
        lines += ["", "| finding | count | first inputs |", "|---|---|---|"]
        for key, value in sorted(tally.findings.items(), key=lambda item: -item[1]["count"]):
            lines.append(
                f"| {key.replace('|', '/')} | {value['count']:,} | {', '.join(str(i) for i, _ in value['inputs'])} |"
            )
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="how many inputs in all")] = 1_000_000,
    *,
    number: Annotated[int, typer.Option(help="the random seed")] = 15,
    batch: Annotated[int, typer.Option(help="inputs between two reports")] = 5_000,
    corpora: Annotated[Path, typer.Option(help="a folder with field/cases and real_loras")] = ROOT.parent / "shared",
    results: Annotated[Path, typer.Option(help="where the report goes")] = ROOT / "benchmarks" / "results",
    state: Annotated[Path | None, typer.Option(help="where an unfinished run is kept")] = None,
) -> None:
    """Run, or go on with a run."""
    torch.set_num_threads(1)
    seeds = own_seeds()
    for folder in (corpora / "field" / "cases", corpora / "real_loras"):
        seeds += seeds_in(folder) if folder.is_dir() else []
    results.mkdir(parents=True, exist_ok=True)
    state = state or results / f"fuzz-{number}.json"
    tally = Tally(number)
    if state.is_file():
        saved = json.loads(state.read_text())
        if saved["number"] == number and saved["seeds"] == len(seeds):
            saved.pop("seeds")
            tally = Tally(**saved | {key: Counter(saved[key]) for key in ("outcomes", "containers")})
    warm_up(seeds)
    again(seeds, tally)
    while tally.next < count:
        tally = watched(seeds, tally, min(count, tally.next + batch))
        written = state.with_suffix(".part")
        written.write_text(json.dumps(vars(tally) | {"seeds": len(seeds)}, indent=1, ensure_ascii=True) + "\n")
        os.replace(written, state)
        (results / f"fuzz-{number}.md").write_text(report(tally, seeds))
        print(tally.next, dict(tally.outcomes), len(tally.findings), "findings", f"{tally.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
