"""What the fuzzer starts from: cases of the field, published files made small, and what the program itself writes.

What is made here is synthetic.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save

from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import LowRank, Magnitude
from lol_core.formats import SUFFIXES
from lol_core.formats.container.safetensors import BITS, DTYPES
from lol_core.formats.writing import forms_of, write

CONFIG = "adapter_config.json"
MAX_TENSORS = 24
"""Published files are brought to this size: their names and metadata are kept, and which sides are equal."""


@dataclass(frozen=True)
class Seed:
    """A file and what lies beside it: name → content; the first is the one that is opened."""

    name: str
    files: dict[str, bytes]

    @property
    def main(self) -> str:
        return next(iter(self.files))


# ------------------------------------------------------------------------------------------------------------- seeds


def own_seeds() -> list[Seed]:
    """What the program itself writes, and one file of every container."""
    generator = torch.Generator().manual_seed(0)

    def factors(n: int, m: int, r: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, r, generator=generator), torch.randn(m, r, generator=generator)

    def layer(name: str, n: int, m: int, r: int) -> LoRALayer:
        return LoRALayer.pair(name, *factors(n, m, r), scale=0.5, alpha=r / 2)

    unet = "down_blocks.0.attentions.0.to_q"
    loras = {
        "linear": LoRA((layer(f"unet.{unet}", 6, 5, 2), layer("text_encoder.layers.0.q_proj", 4, 4, 1))),
        "conv": LoRA((LoRALayer(f"unet.{unet}.conv", LowRank(*factors(6, 36, 2), (6, 4, 3, 3), Kind.CONV), 0.5, 1.0),)),
        "dora": LoRA((LoRALayer("layers.0.q_proj", Magnitude(LowRank(*factors(6, 5, 2)), torch.ones(6)), 0.5, 1.0),)),
    }
    seeds = []
    with TemporaryDirectory() as folder:
        for name, lora in loras.items():
            for form in forms_of(lora):
                path = Path(folder) / form / name
                write(lora, path if form == "PEFT" else path.with_suffix(".safetensors"), form)
                files = sorted(path.iterdir(), reverse=True) if form == "PEFT" else [path.with_suffix(".safetensors")]
                seeds.append(Seed(f"own/{form}/{name}", {file.name: file.read_bytes() for file in files}))
        tensors = {
            "base_model.model.q.lora_A.weight": torch.randn(2, 5, generator=generator),
            "base_model.model.q.lora_B.weight": torch.randn(4, 2, generator=generator),
        }
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save({"state_dict": tensors, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
            seeds.append(Seed(f"own/pickle/{zipped}", {"x.pt": buffer.getvalue()}))
        seeds.append(Seed("own/npz", {"x.npz": as_npz({key: tensor.numpy() for key, tensor in tensors.items()})}))
        seeds.append(Seed("own/gguf", {"x.gguf": as_gguf(Path(folder) / "x.gguf")}))
    items = list(tensors.items())
    index = {"weight_map": {key: f"m-0000{i + 1}-of-00002.safetensors" for i, (key, _) in enumerate(items)}}
    shards = {f"m-0000{i + 1}-of-00002.safetensors": save(dict([item])) for i, item in enumerate(items)}
    seeds.append(Seed("own/shards", shards | {"m.safetensors.index.json": json.dumps(index).encode()}))
    kohya: dict[str, torch.Tensor] = {}
    for part, shape in (("hada_w1_a", (6, 2)), ("hada_w1_b", (2, 5)), ("hada_w2_a", (6, 2)), ("hada_w2_b", (2, 5))):
        kohya[f"lora_unet_a.{part}"] = torch.randn(shape, generator=generator)
    kohya |= {"lora_unet_b.lokr_w1": torch.randn(2, 2), "lora_unet_b.lokr_w2": torch.randn(3, 3, generator=generator)}
    kohya |= {"lora_unet_a.alpha": torch.tensor(1.0), "lora_unet_b.alpha": torch.tensor(2.0)}
    seeds.append(Seed("own/lycoris", {"x.safetensors": save(kohya, {"ss_network_alpha": "1.0"})}))
    return seeds


def as_npz(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            archive.writestr(f"{key}.npy", member.getvalue())
    return buffer.getvalue()


def as_gguf(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((2, 5), dtype=np.float32))
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quantize(np.ones((4, 32), dtype=np.float32), kind)
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((4, 2), dtype=np.float32))
    writer.add_tensor("blk.0.attn_k.weight.lora_a", packed, raw_dtype=kind)
    writer.add_tensor("blk.0.attn_k.weight.lora_b", np.ones((6, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def seeds_in(folder: Path) -> list[Seed]:
    """The files below a folder, with the configuration, index and shards beside them, brought to a small size."""
    seeds = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            continue
        files = {path.name: shrunk(path.read_bytes())}
        for other in sorted(path.parent.iterdir()):
            shard = "-of-0" in path.name and "-of-0" in other.name and other != path
            if other.is_file() and (other.name in (CONFIG, f"{path.name}.index.json") or shard):
                files[other.name] = other.read_bytes()[:20_000]
        if sum(map(len, files.values())) <= 64_000:
            seeds.append(Seed(path.relative_to(folder.parent).as_posix(), files))
    return seeds


def shrunk(content: bytes) -> bytes:
    """A large safetensors file or pickle with fewer and smaller tensors; other content as it is."""
    if len(content) <= 16_000:
        return content
    if parsed := header_of(content):
        entries = {key: entry for key, entry in parsed[0].items() if key != "__metadata__"}
        kept = dict(list(entries.items())[:MAX_TENSORS])
        sides = _smaller({side for entry in kept.values() for side in entry["shape"]})
        header: dict[str, Any] = {
            key: {"dtype": entry["dtype"], "shape": [sides[side] for side in entry["shape"]]}
            for key, entry in kept.items()
        }
        metadata = {key: str(value)[:500] for key, value in (parsed[0].get("__metadata__") or {}).items()}
        return laid_out(header, dict(list(metadata.items())[:20]), random.Random(0))
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # no pickle either
        return content
    if not isinstance(tensors, dict):
        return content
    some = {key: value for key, value in list(tensors.items())[:MAX_TENSORS] if isinstance(value, torch.Tensor)}
    sides = _smaller({side for value in some.values() for side in value.shape})
    buffer = io.BytesIO()
    torch.save({key: torch.ones([sides[side] for side in value.shape]) for key, value in some.items()}, buffer)
    return buffer.getvalue()


def _smaller(sides: set[int]) -> dict[int, int]:
    """Sides by their order: equal ones stay equal, and a smaller one stays smaller."""
    return {side: min(side, place + 1) for place, side in enumerate(sorted(sides))}


# ------------------------------------------------------------------------------------------------------- safetensors


def header_of(content: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Header and data of a safetensors file, None when it is none."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError, RecursionError):
        return None
    return (header, content[8 + length :]) if isinstance(header, dict) else None


def as_bytes(header: Any, data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def laid_out(header: dict[str, Any], metadata: Any, rng: random.Random) -> bytes:
    """A sound file for these dtypes and shapes, wherever that is possible; its numbers are small."""
    position, chunks, entries = 0, [], {}
    for key, entry in header.items():
        entry = dict(entry) if isinstance(entry, dict) else {}
        shape, bits = entry.get("shape"), BITS.get(str(entry.get("dtype")))
        size = 4
        if isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape):
            size = min(prod(shape) * (bits or 8) // 8, 1_000_000)
        dtype = DTYPES.get(str(entry.get("dtype")))
        if dtype in (torch.float32, torch.float16, torch.bfloat16) and rng.random() < 0.9:
            value = rng.choice([1.0, 1.0, 0.5, 2.0, 0.0, -1.0, float("nan"), float("inf"), 1e30])
            numbers = torch.full((max(size // dtype.itemsize, 0),), value, dtype=torch.float64).to(dtype)
            chunks.append(numbers.view(torch.uint8).numpy().tobytes())
        else:
            chunks.append(rng.randbytes(size))
        entries[key] = entry | {"data_offsets": [position, position + len(chunks[-1])]}
        position += len(chunks[-1])
    whole = entries if metadata is None else {"__metadata__": metadata} | entries
    return as_bytes(whole, b"".join(chunks))
