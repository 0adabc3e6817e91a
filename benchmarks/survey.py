"""`python -m benchmarks.survey`: what reading and surveying LoRAs takes beside reading their bytes and multiplying
every factor once, in float32, by a matrix of as many columns as a sketch has numbers.

Synthetic files (random weights in kohya's names and shapes for Stable Diffusion 1.5, float16), and with `--published` a
folder of real ones. Each side in turn for every file, in one process with one thread; processor seconds, so that other
work on the machine counts little. `--rival` runs another program on the same folder: `{folder}` and `{out}` stand for
what it reads and where it may write. Start-up is taken off both by a second run on one of the files alone.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.cost import processor, write_lora
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.insight.survey import SKETCH, survey

RESULTS = Path(__file__).parent / "results" / "survey.json"
RANKS = {4: 12, 32: 6, 64: 4}
"""Synthetic files of each rank."""
ROUNDS = 5
PROGRAMS = 9
"""Rounds beside another program: start-up, which is taken off, varies by half of what is left."""


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def multiply(lora: LoRA, matrices: Mapping[int, torch.Tensor]) -> None:
    for layer in lora.layers:
        for factor in (layer.U, layer.V):
            factor.float().mT @ matrices[len(factor)]


def read_and_survey(zoo: Zoo, id: str) -> None:
    survey(zoo.load(id))


def measured(folder: Path, cache: Path) -> dict[str, Any]:
    zoo = Zoo.open(folder, cache=cache)
    loras = {id: zoo.load(id) for id in zoo.ids}
    lengths = {len(factor) for lora in loras.values() for layer in lora.layers for factor in (layer.U, layer.V)}
    matrices = {length: torch.randn(length, SKETCH) for length in lengths}
    rounds = []
    for _ in range(ROUNDS + 1):  # the first makes what is made once: projections, layouts of headers
        seconds = {"bytes": 0.0, "product": 0.0, "survey": 0.0}
        for id, lora in loras.items():
            seconds["bytes"] += timed(zoo.path(id).read_bytes)
            seconds["product"] += timed(partial(multiply, lora, matrices))
            seconds["survey"] += timed(partial(read_and_survey, zoo, id))
        rounds.append(seconds)
    ratios = [one["survey"] / (one["bytes"] + one["product"]) for one in rounds[1:]]
    modules = sum(len(lora.layers) for lora in loras.values())
    size = sum(entry.size for entry in zoo.entries)
    about = {"loras": len(loras), "modules": modules, "bytes": size}
    return about | {"ratio": statistics.median(ratios), "rounds_s": rounds[1:]}


def seconds_of(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Processor seconds of a program and its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_by_both(folder: Path, place: Path) -> list[Path]:
    """Copies of PEFT's safetensors files, with their configurations: what scanners of adapters read."""
    copies = []
    for entry in Zoo.open(folder, cache=place / "cache").entries:
        path = folder / entry.path
        if entry.dialect == "PEFT" and path.suffix == ".safetensors":
            copy = place / "both" / entry.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            for beside in (path, *path.parent.glob("*.json")):
                shutil.copyfile(beside, copy.parent / beside.name)
            copies.append(copy)
    return copies


def compared(folder: Path, rival: str, place: Path) -> dict[str, Any]:
    """Processor seconds without start-up of ours and of the rival, in turn, on files that both read, and their ratio.
    Start-up: the median of what a run on one of the files takes.
    """
    copies = read_by_both(folder, place)
    one = place / "one"
    shutil.copytree(copies[0].parent, one / "lora")
    ours = f"{sys.executable} -m lol_core survey {{folder}} --json"
    taken: dict[str, dict[str, list[float]]] = {}
    for i in range(PROGRAMS):
        for name, template in (("ours", ours), ("rival", rival)):
            for files in (place / "both", one):
                out = place / f"out-{i}-{name}-{files.name}"
                out.mkdir()
                command = shlex.split(template.format(folder=files, out=out))
                own = {"OMP_NUM_THREADS": "1", "LOL_CACHE_DIR": str(out), "HOME": str(out)}
                taken.setdefault(name, {}).setdefault(files.name, []).append(seconds_of(command, own))
    without = {name: [seconds - statistics.median(of["one"]) for seconds in of["both"]] for name, of in taken.items()}
    rounds = [{"ours": a, "rival": b} for a, b in zip(without["ours"], without["rival"], strict=True)]
    ratio = statistics.median(row["ours"] / row["rival"] for row in rounds)
    return {"loras": len(copies), "ratio": ratio, "rounds_s": rounds, "all_s": taken}


def main(
    published: Annotated[Path | None, typer.Option(help="A folder of real LoRAs.")] = None,
    rival: Annotated[str | None, typer.Option(help="A command with {folder} and {out}.")] = None,
    quick: Annotated[bool, typer.Option(help="One synthetic file of each rank.")] = False,
    results: Path = RESULTS,
) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {"processor": processor(), "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for rank, count in RANKS.items():
            folder = place / f"rank-{rank}"
            folder.mkdir()
            for i in range(1 if quick else count):
                write_lora(folder / f"{i:03d}.safetensors", rank, i)
            report[f"synthetic, rank {rank}"] = measured(folder, place / "cache")
        if published is not None:
            report["published"] = measured(published, place / "cache")
            if rival is not None:
                about = {"rival": Path(shlex.split(rival)[0]).name}
                report["published, of PEFT, beside a rival"] = about | compared(published, rival, place)
    results.write_text(json.dumps(report, indent=1) + "\n")
    for title, part in report.items():
        if isinstance(part, dict):
            print(f"{title}: {part['ratio']:.2f}")


if __name__ == "__main__":
    typer.run(main)
