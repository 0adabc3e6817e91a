"""`python -m benchmarks.cost`: what it costs to index and survey so many LoRAs on a cluster, from measured processor
seconds per LoRA.

`--measure` takes them anew, on synthetic files (random weights, kohya's names and shapes for Stable Diffusion 1.5, 264
modules, float16), and keeps them in benchmarks/results/cost.json. They are seconds of one processor, not of the clock,
so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from benchmarks.index import modules, write_files
from lol_core.collections.index import Index
from lol_core.formats import read
from lol_core.insight.survey import survey

RESULTS = Path(__file__).parent / "results" / "cost.json"
RANKS = (4, 32)
TABLE = re.compile(r"\| [\d,]+ LoRAs \|.*?one core of [^\n]*", re.DOTALL)
"""What this script prints, in a document."""


def write_lora(path: Path, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, n, m in modules():
        for part, shape in (("lora_up", (n, rank)), ("lora_down", (rank, m))):
            tensors[f"{name}.{part}.weight"] = torch.randn(*shape, generator=generator).half()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)


def indexing(count: int) -> float:
    """Processor seconds of a first index, for each of `count` files whose weights are holes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "loras"
        write_files(folder, count)
        started = time.process_time()
        Index(folder, Path(place) / "cache").update()
        return (time.process_time() - started) / count


def surveying(rank: int, count: int) -> dict[str, Any]:
    """Processor seconds of a survey of each of `count` files; what is made once for all is made before."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / f"{i:03d}.safetensors" for i in range(count + 1)]
        seconds = []
        for i, path in enumerate(paths):
            write_lora(path, rank, i)
            started = time.process_time()
            survey(read(path))
            seconds.append(time.process_time() - started)
        return {"rank": rank, "modules": 264, "bytes": paths[0].stat().st_size, "survey_s": seconds[1:]}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def table(report: dict[str, Any], loras: int, cores: int, price: float) -> list[str]:
    """Markdown. price: of one core for an hour, in US dollars."""
    rows = [
        f"| {loras:,} LoRAs | bytes | core-hours | on {cores} cores | reads per second | at ${price:g} a core-hour |",
        "|---|---|---|---|---|---|",
    ]
    hours = loras * report["index_s"] / 3600
    rows.append(f"| index, in one process | headers | {hours:.1f} | {hours:.1f} h | | ${hours * price:,.2f} |")
    for one in report["measured"]:
        hours = loras * statistics.median(one["survey_s"]) / 3600
        size = loras * one["bytes"]
        rows.append(
            f"| survey, rank {one['rank']} | {size / 1e12:.1f} TB | {hours:,.0f} | {hours / cores:.1f} h"
            f" | {size / (hours / cores * 3600) / 1e9:.1f} GB | ${hours * price:,.2f} |"
        )
    return rows


def main(
    loras: int = 1_000_000,
    *,
    cores: int = 64,
    price: Annotated[float, typer.Option(help="US dollars for one core for an hour.")] = 0.05,
    measure: Annotated[bool, typer.Option(help="Measure anew, one thread.")] = False,
    count: Annotated[int, typer.Option(help="Files of each rank that are measured.")] = 8,
    results: Path = RESULTS,
    document: Annotated[Path | None, typer.Option(help="A document whose table is to be replaced.")] = None,
) -> None:
    if measure:
        torch.set_num_threads(1)
        report = {
            "processor": processor(),
            "index_s": indexing(50 * count),
            "measured": [surveying(rank, count) for rank in RANKS],
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(report, indent=1) + "\n")
    report = json.loads(results.read_text())
    about = f"Stable Diffusion 1.5, 264 modules, float16. Processor seconds of one core of {report['processor']}."
    text = "\n".join([*table(report, loras, cores, price), "", about])
    print(text)
    if document is not None:
        document.write_text(TABLE.sub(lambda _: text, document.read_text(), count=1))


if __name__ == "__main__":
    typer.run(main)
