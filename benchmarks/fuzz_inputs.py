"""What the fuzzer starts from, and how it damages it: headers and configurations by their structure, the rest by bytes.

Every input follows from its number alone, so that a finding can be made again. Seeds made here are synthetic.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
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
MAX_SIDE = 12
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
                found = sorted(path.iterdir(), reverse=True) if form == "PEFT" else [path.with_suffix(".safetensors")]
                seeds.append(Seed(f"own/{form}/{name}", {file.name: file.read_bytes() for file in found}))
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
        try:
            size = min(prod(shape or [1]) * (bits or 8) // 8, 1_000_000)
        except TypeError:
            size = 4
        size = size if isinstance(size, int) and size >= 0 else 4
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


PIECES = (
    "lora_A lora_B lora_A.weight lora_B.weight lora_down.weight lora_up.weight lora_mid.weight alpha dora_scale lora_E"
    " hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w2 lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b"
    " lokr_t2 lora_a lora_b m magnitude lora_magnitude_vector lora_embedding_A lora_embedding_B diff diff_b w_norm"
    " lora_A.default.weight lora.A lora.down.weight weight bias scale_weight lora_AB lora_diag oft_blocks lora_route"
    " alpha_scale lora_up.blocks.0.weight linear_in.weight matrix_A.0 processor.to_q_lora.down.weight experts.0"
).split()
PREFIXES = (
    "",
    "base_model.model.",
    "unet.",
    "transformer.",
    "lora_unet_",
    "text_encoder.",
    "module.",
    "lora_te_",
    "0.",
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 8, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**400, float("nan"), float("inf"), "", "auto",  # noqa: E501
    "8", "NaN", "1e400", "None", "ünï😀", "\ud800", "a" * 300, [], [1], ["x"], {}, {"a": 1}, {"lora_alpha": 4}, [[[[[]]]]],  # noqa: E501
    "LORA", "VERA", "(", "(a+)+$", ".*", "[", "q", "(?P<x>", "x" * 40,
    "([a-z_.0-9]+)+!", "(a{99}){99}",
)  # fmt: skip
KEYS = (
    "lora_alpha alpha r peft_type alpha_pattern rank_pattern use_rslora use_dora bias target_modules init_lora_weights"
    " enable_lora lora_parameters lora_config config fan_in_fan_out base_model_name_or_path ss_network_alpha scale rank"
    " ss_network_dim ss_base_model_version lora_adapter_metadata network_alpha modelspec.architecture transformer.r"
    " transformer.lora_alpha unet.lora_alpha weight_map general.type use_qalora qalora_group_size target_parameters"
).split()


def mutated_header(header: dict[str, Any], data: bytes, rng: random.Random) -> bytes:
    """One to four changes of names, shapes, dtypes, offsets and metadata; half the time the data are laid out anew, so
    that the change reaches what reads the factors.
    """
    metadata = header.get("__metadata__")
    entries = {key: dict(entry) for key, entry in header.items() if isinstance(entry, dict) and key != "__metadata__"}
    fits = rng.random() < 0.6
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if not entries:
            break
        key = rng.choice(list(entries))
        entry = entries[key]
        match rng.randrange(9 if fits else 11):
            case 0 | 1:
                entry["shape"] = mutated_shape(entry.get("shape"), rng)
            case 2:
                entry["dtype"] = rng.choice([*BITS, *BITS, "F33", "f32", 7, None, ["F32"]] if not fits else [*BITS])
            case 3 | 4:
                entries = renamed(entries, key, rng)
            case 5:
                del entries[key]
            case 6:
                other = rng.choice(list(entries))
                entries[key], entries[other] = entries[other], entries[key]
            case 7:
                metadata = mutated_json(metadata or {"ss_network_dim": "4"}, rng, texts=rng.random() < 0.7)
            case 8:
                entries[f"{rng.choice(PREFIXES)}{rng.choice('qkv')}.{rng.choice(PIECES)}"] = dict(entry)
            case 9:
                entry["data_offsets"] = mutated_shape(entry.get("data_offsets"), rng)
            case 10:
                entry[rng.choice(("shape", "dtype", "data_offsets"))] = rng.choice(ODD)
    if fits:
        return laid_out(entries, metadata, rng)
    return as_bytes(({} if metadata is None else {"__metadata__": metadata}) | entries, data)


def mutated_shape(shape: Any, rng: random.Random) -> Any:
    sound = isinstance(shape, list) and all(type(side) is int for side in shape)
    shape = list(shape) if sound else [4, 4]
    place = rng.randrange(len(shape)) if shape else 0
    match rng.randrange(8):
        case 0 if shape:
            shape[place] += rng.choice((-1, 1, 1, 2))
        case 1 if shape:
            shape[place] = rng.choice((0, 0, 1, 2, 3, 4, 5, 8, 16, 300))
        case 2:
            shape.reverse()
        case 3:
            shape.insert(place, rng.choice((1, 1, 2, 3)))
        case 4 if shape:
            del shape[place]
        case 5 if shape:
            shape[place] = rng.choice((2**31, 2**63, -1, 1.5, "4", True, None))
        case 6:
            shape = []
        case _:
            shape = rng.choice(([1], [3], [2, 2], [2, 3, 4], [4, 2, 3, 3], [2, 4, 1], [1] * 70))
    return shape


def renamed(entries: dict[str, Any], key: str, rng: random.Random) -> dict[str, Any]:
    head, _, tail = key.rpartition(".")
    name = rng.choice(
        (
            f"{head}.{rng.choice(PIECES)}",
            f"{head.rpartition('.')[0]}.{rng.choice(PIECES)}",
            f"{rng.choice(PREFIXES)}{key}",
            key.partition(".")[2] or key,
            key.replace(rng.choice("abdlow._"), rng.choice(("", ".", "_", "A", "0")), 1),
            f"{key}.{rng.choice(('0', 'default', 'ünï', 'a.b'))}",
            rng.choice(("", ".", "..", "x", "lora_A", ".lora_A.weight", "0", "1", tail)),
        )
    )
    return {name if old == key else old: value for old, value in entries.items()}


def mutated_json(content: Any, rng: random.Random, texts: bool = False, depth: int = 0) -> Any:
    """A changed copy of JSON; texts: values stay texts, as the metadata of safetensors must."""
    if isinstance(content, dict):
        content = dict(content)
        keys = list(content)
        match rng.randrange(5):
            case 0 if keys:
                del content[rng.choice(keys)]
            case 1 if keys and depth < 4:
                key = rng.choice(keys)
                content[key] = mutated_json(content[key], rng, texts, depth + 1)
            case 2:
                content[rng.choice(KEYS)] = odd(rng, texts)
            case _:
                content[rng.choice(keys) if keys and rng.random() < 0.6 else rng.choice(KEYS)] = odd(rng, texts)
        return content
    if isinstance(content, list) and content and rng.random() < 0.5:
        return [mutated_json(value, rng, texts, depth + 1) for value in content]
    return odd(rng, texts)


def odd(rng: random.Random, texts: bool) -> Any:
    value = rng.choice(ODD)
    if rng.random() < 0.15:
        value = {rng.choice((".*", "q", "(a+)+$", "(", *KEYS)): rng.choice(ODD) for _ in range(2)}
    if rng.random() < 0.02:
        value = json.loads("[" * 300 + "]" * 300)
    if texts and not isinstance(value, str):
        try:
            return json.dumps(value)
        except ValueError:
            return str(value)[:300]
    return value


# --------------------------------------------------------------------------------------------------------- raw bytes

NUMBERS = tuple(
    struct.pack(form, value)
    for form, values in (
        ("<B", (0, 1, 127, 128, 255)),
        ("<I", (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)),
        ("<Q", (0, 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)),
    )
    for value in values
)


def mutated_bytes(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to eight changes of bytes, half of them in the first 400, where headers are."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        if not out:
            out += b"\0"
        place = rng.randrange(min(len(out), 400) if rng.random() < 0.5 else len(out))
        match rng.randrange(8):
            case 0 | 1:
                out[place] ^= 1 << rng.randrange(8)
            case 2:
                out[place] = rng.randrange(256)
            case 3:
                number = rng.choice(NUMBERS)
                out[place : place + len(number)] = number
            case 4:
                del out[place : place + rng.choice((1, 2, 4, 8, 100))]
            case 5:
                out[place:place] = rng.randbytes(rng.choice((1, 4, 8, 50)))
            case 6:
                length = rng.choice((4, 16, 64, 256))
                start = rng.randrange(max(1, len(other)))
                out[place : place + length] = other[start : start + length]
            case 7:
                if rng.random() < 0.3:
                    out = out[:place]
                else:
                    length = rng.choice((1, 8, 64))
                    out[place:place] = out[max(0, place - length) : place] * rng.choice((1, 2, 50))
    return bytes(out[:200_000])


# ------------------------------------------------------------------------------------------------------------ inputs


def mutated(seed: Seed, other: Seed, rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """(name of the file to open, all files). Usually one file is changed, and by its structure where it has one."""
    files = dict(seed.files)
    main = seed.main
    target = rng.choice(list(files)) if rng.random() < 0.5 else main
    content = files[target]
    if target.endswith(".json") or (CONFIG not in files and rng.random() < 0.08):
        target = target if target.endswith(".json") else CONFIG
        files[target] = mutated_text(files.get(target, b'{"lora_alpha": 4, "r": 2}'), rng)
    elif (parsed := header_of(content)) and rng.random() < 0.85:
        files[target] = mutated_header(*parsed, rng)
    elif target.endswith((".pt", ".pth", ".bin", ".ckpt")) and rng.random() < 0.3:
        files[target] = nested(content, rng)
    else:
        files[target] = mutated_bytes(content, other.files[other.main], rng)
    if rng.random() < 0.03:
        renamed_to = f"x{rng.choice(SUFFIXES)}"
        files = {renamed_to if name == main else name: value for name, value in files.items()}
        main = renamed_to
    return main, files


def mutated_text(content: bytes, rng: random.Random) -> bytes:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        parsed = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        parsed = mutated_json(parsed, rng)
    text = json.dumps(parsed)
    raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
    return mutated_bytes(raw, content, rng) if rng.random() < 0.1 else raw


def nested(content: bytes, rng: random.Random) -> bytes:
    """A pickle with its tensors under other names, in other containers, or of another make."""
    try:
        tensors: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a seed that is no pickle
        return content
    for _ in range(rng.choice((1, 2))):
        match rng.randrange(6):
            case 0:
                tensors = {rng.choice(("module", "model", "lora", "x", "optimizer", "ema")): tensors, "epoch": 1}
            case 1:
                tensors = [tensors, tensors]
            case 2 if isinstance(tensors, dict) and tensors:
                tensors = tensors | {rng.choice(list(tensors)): _odd_tensor(rng)}
            case 3 if isinstance(tensors, dict):
                tensors = {str(key)[: rng.randrange(1, 60)]: value for key, value in tensors.items()}
            case 4 if isinstance(tensors, dict):
                tensors = list(tensors.values())
            case _:
                tensors = {"a": tensors, 1: torch.ones(2, 2), "1": torch.ones(2)}
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue()


def _odd_tensor(rng: random.Random) -> torch.Tensor:
    return rng.choice(
        (
            torch.ones(1).expand(1000, 1000),
            torch.eye(3).to_sparse(),
            torch.ones(2, 2, dtype=torch.complex64),
            torch.ones(3, dtype=torch.int8),
            torch.tensor(float("nan")),
            torch.ones(0, 4),
            torch.ones(2, 3, 4),
            torch.ones(4, 4, requires_grad=True),
            torch.ones(2, 2).to("meta"),
        )
    )


def inputs(seeds: list[Seed], number: int, start: int) -> Iterator[tuple[int, str, str, dict[str, bytes]]]:
    """From `start` on: (its number, name of its seed, file to open, all files) for the random seed `number`."""
    while True:
        rng = random.Random(f"{number}/{start}")
        seed, other = rng.choice(seeds), rng.choice(seeds)
        yield start, seed.name, *mutated(seed, other, rng)
        start += 1
