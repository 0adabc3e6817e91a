"""`python -m benchmarks.probe_formats`: what `probe` costs beside reading and `json.loads`-ing the same headers.

The files are synthetic: kohya's names and shapes for Stable Diffusion 1.5 (264 modules, 792 tensors), nothing trained.
Times are of the processor, so that a busy machine does not count; both are taken in one run.
"""

from __future__ import annotations

import json
import platform
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

from lol_core.formats import probe

ROOT = Path(__file__).resolve().parent.parent
RANKS = (1, 2, 4, 8)


def modules() -> list[tuple[str, int, int]]:
    """(name, outputs, inputs) of every linear module of UNet and text encoder that kohya's trainer adapts."""
    modules = []

    def attention(place: str, width: int) -> None:
        modules.append((f"{place}_proj_in", width, width))
        block = f"{place}_transformer_blocks_0"
        for layer, states in (("attn1", width), ("attn2", 768)):
            for projection, inputs in (("q", width), ("k", states), ("v", states), ("out_0", width)):
                modules.append((f"{block}_{layer}_to_{projection}", width, inputs))
        modules.append((f"{block}_ff_net_0_proj", 8 * width, width))
        modules.append((f"{block}_ff_net_2", width, 4 * width))
        modules.append((f"{place}_proj_out", width, width))

    for kind, count, widths in (("down", 2, {0: 320, 1: 640, 2: 1280}), ("up", 3, {1: 1280, 2: 640, 3: 320})):
        for block, width in widths.items():
            for i in range(count):
                attention(f"lora_unet_{kind}_blocks_{block}_attentions_{i}", width)
    attention("lora_unet_mid_block_attentions_0", 1280)
    for i in range(12):
        place = f"lora_te_text_model_encoder_layers_{i}"
        modules += [(f"{place}_self_attn_{name}_proj", 768, 768) for name in ("q", "k", "v", "out")]
        modules += [(f"{place}_mlp_fc1", 3072, 768), (f"{place}_mlp_fc2", 768, 3072)]
    return modules


def write_collection(folder: Path, count: int, ranks: tuple[int, ...]) -> list[Path]:
    paths = []
    for i in range(count):
        rank, tensors = ranks[i % len(ranks)], {}
        for name, n, m in modules():
            tensors[f"{name}.lora_down.weight"] = torch.full((rank, m), 0.01, dtype=torch.float16)
            tensors[f"{name}.lora_up.weight"] = torch.full((n, rank), 0.01, dtype=torch.float16)
            tensors[f"{name}.alpha"] = torch.tensor(rank / 2, dtype=torch.float16)
        tags = json.dumps({"images": {f"tag {j}": j for j in range(300)}})
        metadata = {"ss_network_dim": str(rank), "ss_output_name": f"synthetic {i}", "ss_tag_frequency": tags}
        paths.append(folder / f"{i:05d}.safetensors")
        save_file(tensors, paths[-1], metadata=metadata)
    return paths


def header(path: Path) -> object:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def seconds(act: Callable[[Path], object], paths: list[Path]) -> float:
    started = time.process_time()
    for path in paths:
        act(path)
    return (time.process_time() - started) / len(paths)


def main(
    count: Annotated[int, typer.Option(help="how many files")] = 200,
    results: Annotated[Path, typer.Option(help="where the report goes")] = ROOT / "benchmarks" / "results",
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_collection(Path(folder), count, RANKS[:1] if count < len(RANKS) else RANKS)
        seconds(header, paths)
        passes = [(seconds(probe, paths), seconds(header, paths)) for _ in range(4)]
    first, plain = passes[0][0], min(theirs for _, theirs in passes)
    known = min(ours for ours, _ in passes[1:])
    lines = [
        "# Probing",
        "",
        f"`python -m benchmarks.probe_formats`: {count} synthetic kohya files of 264 modules and 792 tensors, in"
        f" {len(RANKS)} ranks; processor time of one thread, beside reading and `json.loads`-ing the same headers.",
        "",
        "| | ms a file | times `json.loads` |",
        "|---|---|---|",
        f"| json.loads of the headers | {plain * 1e3:.2f} | 1 |",
        f"| probe, a first pass | {first * 1e3:.2f} | {first / plain:.2f} |",
        f"| probe, structures known | {known * 1e3:.2f} | {known / plain:.2f} |",
        "",
        f"Machine: {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}.",
    ]
    results.mkdir(parents=True, exist_ok=True)
    (results / "probe.md").write_text("\n".join(lines) + "\n")
    (results / "probe.json").write_text(json.dumps({"count": count, "passes": passes}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
