"""`python -m benchmarks.index`: how fast a folder is indexed, beside reading and parsing the same headers, and how fast
100,000 unchanged files are opened again.

The files are synthetic: headers as kohya's scripts write them for Stable Diffusion 1.5 (264 modules, 792 tensors), and
no weights but zeros. Each part runs in a process of its own; ratios are of times in one run, on the machine named.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import typer

RANK = 4
TEXT_LAYERS, TEXT_WIDTH = 12, 768
WIDTHS = {
    "down_blocks_0": (320, 2),
    "down_blocks_1": (640, 2),
    "down_blocks_2": (1280, 2),
    "mid_block": (1280, 1),
    "up_blocks_1": (1280, 3),
    "up_blocks_2": (640, 3),
    "up_blocks_3": (320, 3),
}
"""Width and number of attentions of the UNet's blocks."""


def modules() -> Iterator[tuple[str, int, int]]:
    """(kohya's name, outputs, inputs) of the 264 modules of Stable Diffusion 1.5."""
    for layer in range(TEXT_LAYERS):
        place = f"lora_te_text_model_encoder_layers_{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{place}_self_attn_{part}", TEXT_WIDTH, TEXT_WIDTH
        yield f"{place}_mlp_fc1", 4 * TEXT_WIDTH, TEXT_WIDTH
        yield f"{place}_mlp_fc2", TEXT_WIDTH, 4 * TEXT_WIDTH
    for block, (width, attentions) in WIDTHS.items():
        for attention in range(attentions):
            place = f"lora_unet_{block}_attentions_{attention}"
            yield f"{place}_proj_in", width, width
            yield f"{place}_proj_out", width, width
            place += "_transformer_blocks_0"
            for name in ("to_q", "to_k", "to_v", "to_out_0"):
                yield f"{place}_attn1_{name}", width, width
                yield f"{place}_attn2_{name}", width, TEXT_WIDTH if name in ("to_k", "to_v") else width
            yield f"{place}_ff_net_0_proj", 8 * width, width
            yield f"{place}_ff_net_2", width, 4 * width


def write_files(folder: Path, count: int) -> None:
    """Files that differ in their metadata, as those of one training script do. The weights are holes in the file."""
    tensors: dict[str, tuple[int, ...]] = {}
    for name, n, m in modules():
        convolution = (1, 1) if name.endswith(("proj_in", "proj_out")) else ()
        tensors |= {
            f"{name}.alpha": (),
            f"{name}.lora_down.weight": (RANK, m, *convolution),
            f"{name}.lora_up.weight": (n, RANK, *convolution),
        }
    header, end, alphas = {}, 0, []
    for key in sorted(tensors):
        size = 2
        for side in tensors[key]:
            size *= side
        alphas += [end] if not tensors[key] else []
        header[key] = {"dtype": "F16", "shape": tensors[key], "data_offsets": [end, end + size]}
        end += size
    folder.mkdir(parents=True)
    for i in range(count):
        about = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(RANK),
            "ss_network_alpha": "4.0",
            "ss_base_model_version": "sd_v1-5",
            "ss_output_name": f"synthetic-{i:05d}",
            "ss_seed": str(i),
            "ss_training_started_at": f"17000{i:05d}.5",
            "ss_tag_frequency": json.dumps({"images": {f"tag number {tag}": tag + i for tag in range(100)}}),
            "sshash_model_hash": f"{i:064x}",
        }
        text = json.dumps({"__metadata__": about} | header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / f"synthetic-{i:05d}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
            for place in alphas:
                os.pwrite(file.fileno(), b"\x00\x44", 8 + len(text) + place)  # 4.0 in half precision


def read_headers(folder: Path) -> int:
    """What any index must do at least: read every header and parse it, in one thread."""
    read = 0
    for entry in os.scandir(folder):
        with open(entry.path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            read += len(json.loads(file.read(length)))
    return read


def timed(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    act()
    return clock() - start


def measure_first(folder: Path, sample: Path, cache: Path, repeats: int) -> dict[str, object]:
    """A first index and the plain reading in turn, so that both see the same machine. sample: a folder that is indexed
    before, so that memory is told without what is loaded once.
    """
    from lol_core.collections.entry import Entry
    from lol_core.collections.index import Index

    count = len(os.listdir(folder))
    read_headers(folder)  # the files are in the page cache for both
    Index(sample, cache).update()
    plain, first, again = [], [], []
    process = psutil.Process()
    memory = 0
    for i in range(repeats):
        plain.append(timed(lambda: read_headers(folder)))
        before = process.memory_info().rss
        index = Index(folder, cache / str(i))
        entries: list[Entry] = []
        first.append(timed(lambda: entries.extend(index.update())))  # noqa: B023  called at once
        assert len(entries) == count and all(entry.reason is None for entry in entries)
        memory = memory or process.memory_info().rss - before
        again.append(timed(index.update))
    return {
        "files": count,
        "reading and parsing the headers (s)": plain,
        "first index (s)": first,
        "files a second": count / statistics.median(first),
        "first index / reading the headers": statistics.median(first) / statistics.median(plain),
        "opened again / reading the headers": statistics.median(again) / statistics.median(plain),
        "memory (MB)": memory / 1e6,
        "index per 1,000 files (MB)": index.path.stat().st_size / count / 1000,
    }


def prepare_many(folder: Path, sample: Path, cache: Path, count: int) -> None:
    """An index of `count` empty files with the entry of a synthetic LoRA: rows put there without reading anything."""
    from lol_core.collections.index import Index
    from lol_core.collections.rows import Rows
    from lol_core.collections.walk import candidates

    (entry,) = Index(sample, cache).update()[:1]
    for i in range(count):
        place = folder / f"{i // 1000:03d}"
        if i % 1000 == 0:
            place.mkdir(parents=True)
        (place / f"synthetic-{i:06d}.safetensors").touch()
    index = Index(folder, cache)
    with index.connection() as connection:
        present = candidates(folder)
        rows = Rows(index.path, connection)
        for start in range(0, count, 1000):
            block = present[start : start + 1000]
            rows.write(
                (c, replace(entry, path=c.id, size=c.size, mtime=c.mtime, digest=f"{start + i:064x}"))
                for i, c in enumerate(block)
            )


def list_files(folder: Path) -> list[tuple[str, int, float]]:
    """What no way of opening a folder again does without: the plainest loop over the sizes and times of its files."""
    return [
        (entry.name, (status := entry.stat()).st_size, status.st_mtime)
        for place in folder.iterdir()
        for entry in os.scandir(place)
    ]


def measure_many(folder: Path, cache: Path, repeats: int) -> dict[str, object]:
    from lol_core.collections.folder import Zoo
    from lol_core.collections.index import Index
    from lol_core.collections.page import Filters, Order

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = Index(folder, cache)
    first_page = [timed(pages.page) for _ in range(repeats)]
    search = [timed(lambda: pages.page("synthetic-099999")) for _ in range(repeats)]
    opened = [timed(lambda: Zoo.open(folder, cache=cache).fingerprint) for _ in range(repeats)]
    processor = [timed(lambda: Zoo.open(folder, cache=cache).fingerprint, time.process_time) for _ in range(repeats)]
    listed = [timed(lambda: list_files(folder), time.process_time) for _ in range(repeats)]
    return {
        "files": len(Zoo.open(folder, cache=cache)),
        "opened again (s)": opened,
        "opened again (s of one processor)": processor,
        "of that listing them and asking for their sizes and times (s of one processor)": listed,
        "most memory, all included (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "of that before opening (MB)": before / 1e3,
        "first page (s)": first_page,
        "page 500 sorted by size (s)": timed(lambda: pages.page(order=Order.SIZE, offset=50_000)),
        "search that finds one (s)": search,
        "filter by rank and dialect (s)": timed(lambda: pages.page(filters=Filters(ranks=(RANK,), dialects=("x",)))),
        "index (MB)": pages.path.stat().st_size / 1e6,
    }


def main(
    files: Annotated[int, typer.Option(help="Files of the first index.")] = 2000,
    *,
    rows: Annotated[int, typer.Option(help="Files that are opened again.")] = 100_000,
    repeats: Annotated[int, typer.Option(help="Times each measurement is repeated.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("benchmarks/results/index.json"),
    part: Annotated[str, typer.Option(hidden=True)] = "",
    place: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure, and write the report."""
    if part == "first":
        print(json.dumps(measure_first(place / "files", place / "sample", place / "cache", repeats)))
        return
    if part == "many":
        print(json.dumps(measure_many(place / "many", place / "cache", repeats)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder / "files", files)
        write_files(folder / "sample", 1)
        report: dict[str, object] = {
            "synthetic": True,
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
        }
        for name in ("first", "many"):
            if name == "many":
                prepare_many(folder / "many", folder / "sample", folder / "cache", rows)
            command = [sys.executable, "-m", "benchmarks.index", "--part", name, "--place", temporary]
            done = subprocess.run([*command, "--repeats", str(repeats)], check=True, capture_output=True, text=True)
            report[name] = json.loads(done.stdout)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    typer.run(main)
