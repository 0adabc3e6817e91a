"""How the fuzzer damages files: headers and configurations by their structure, the rest by bytes.

Every input follows from its number alone, so that a finding can be made again.
"""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.fuzz_seeds import CONFIG, Seed, as_bytes, header_of, laid_out
from lol_core.formats import SUFFIXES
from lol_core.formats.container.safetensors import BITS

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
# as a list to read across: a value a line would be a page
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 8, 0.5, -0.0, 1e308, 2**31, 2**63, 2**64, 10**400, float("nan"), float("inf"), "", "auto",  # noqa: E501  (a list to read across)
    "8", "NaN", "1e400", "None", "ünï😀", "\ud800", "a" * 300, [], [1], ["x"], {}, {"a": 1}, {"lora_alpha": 4}, [[[[[]]]]],  # noqa: E501  (a list to read across)
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
