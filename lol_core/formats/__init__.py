"""Reading LoRA files of every dialect: `read` gives the LoRA, `probe` what its header says, without touching the
weights.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from torch import Tensor

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats import cloneofsimo, diffusers, kohya, llama_cpp, mlx, mlx_vlm, nunchaku, peft, sam, xlabs
from lol_core.formats.base_models import suggest_base_model
from lol_core.formats.container import (
    INDEX_NAMES,
    SUFFIXES,
    Neighbours,
    Shards,
    Stream,
    TensorFile,
    open_streams,
    open_tensors,
    shards_among,
    without_waiting,
)
from lol_core.formats.families import NEIGHBOURS, explain, family_of
from lol_core.formats.reading import Dialect

__all__ = [
    "DIALECTS",
    "SUFFIXES",
    "Neighbours",
    "Shards",
    "Stream",
    "probe",
    "probe_streams",
    "read",
    "read_streams",
    "read_tensors",
    "shards_among",
    "suggest_base_model",
]

DIALECTS = tuple(
    module.DIALECT for module in (llama_cpp, sam, cloneofsimo, nunchaku, mlx, mlx_vlm, xlabs, diffusers, kohya, peft)
)
"""Tried in this order; the first that recognises the keys reads the file."""

CONFIGS = ("adapter_config.json", "lora_config.json")
"""The configuration beside a file: PEFT, MLX, AdapterHub; PaddleNLP."""


def configs_of(name: str) -> tuple[str, ...]:
    """What the configuration beside a file of that name may be called: also NAME_config.json, as W2T copies PEFT's."""
    return *CONFIGS, f"{os.path.splitext(name)[0]}_config.json"


MAX_CONFIG_BYTES = 10_000_000
IN_FOLDER = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapters.safetensors",
    "adapters.npz",
    "pytorch_adapter.bin",
    *INDEX_NAMES,
)
"""What a folder's LoRA is called."""


def read(path: Path | str) -> LoRA:
    """Read a LoRA file, all shards of one, or a PEFT folder. Raises LoRAFormatError with the path, the reason and what
    to do when it is not one.
    """
    with naming(path):
        return read_file(path)


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Let errors of a file begin with its name."""
    try:
        yield
    except LoRAFormatError as error:
        raise type(error)(f"{name}: {error}") from error


def read_file(path: Path | str) -> LoRA:
    """`read`, whose errors do not name the file."""
    return _open(Path(path), weights=True)


def probe_file(path: Path | str) -> LoRA:
    """`probe`, whose errors do not name the file."""
    return _open(Path(path), weights=False)


def probe(path: Path | str) -> LoRA:
    """The same LoRA with tensors on the meta device: names, shapes, ranks, scales, dtypes and metadata, but no weights
    read. Raises LoRAFormatError where `read` would.
    """
    with naming(path):
        return probe_file(path)


def read_streams(
    streams: Sequence[Stream], config: tuple[str, bytes] | None = None, shards: Shards | None = None
) -> LoRA:
    """Read a LoRA from open, seekable streams, such as members of an archive: one, or several as `shards_among` lists
    them. config: name and content of the configuration beside them, if there is one. Raises LoRAFormatError as `read`
    does.
    """
    with open_streams(streams, shards) as tensors:
        return _read(tensors, _parse_config(*config) if config else {}, weights=True)


def probe_streams(
    streams: Sequence[Stream],
    config: tuple[str, bytes] | None = None,
    shards: Shards | None = None,
    *,
    sparing: bool = False,
) -> LoRA:
    """What `probe` says of such streams. sparing: each read costs; then one alpha is read for all where they are
    scattered over the file, and a note says so.
    """
    with open_streams(streams, shards, sparing=sparing) as tensors:
        return _read(tensors, _parse_config(*config) if config else {}, weights=False)


def read_tensors(tensors: Mapping[str, Tensor], name: str, config: Mapping[str, Any]) -> LoRA:
    """The LoRA that named tensors are, as they would stand in a file; those on the meta device give one without
    weights. name: of that file, for errors. Raises LoRAFormatError as `read` does.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    file = TensorFile(Path(name), shapes, {}, tensors.__getitem__, tensors.__getitem__)
    return _read(file, config, weights=True)


def _open(path: Path, *, weights: bool) -> LoRA:
    version = _version(path)
    if version is not None and stat.S_ISDIR(version[0]):
        path = _in_folder(path)
        version = _version(path)
    folder, own = os.path.split(path)
    places = [os.path.join(folder, name) for name in configs_of(own)]
    for _ in range(2):
        before = version
        try:
            config = next(filter(None, map(_read_config, places)), {})
            with open_tensors(path) as file:
                lora = _read(file, config, weights=weights)
        except LoRAFormatError:
            if (version := _version(path)) == before:
                raise
            continue
        if (version := _version(path)) == before:
            return lora
    raise LoRAFormatError("The file changes while it is read. Read it again when it is whole.")


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from itself before a change: mode, size and time."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mode, status.st_size, status.st_mtime_ns


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise LoRAFormatError(
        "A folder without adapter_model.safetensors or adapter_model.bin. Name the file itself, or scan the folder."
    )


def _read_config(path: str) -> dict[str, Any]:
    """The configuration beside a file, empty when there is none. Raises LoRAFormatError when it cannot be read: its
    alpha is part of the function.
    """
    if not os.path.exists(path):  # most are not: a third of the time of an attempt to open it
        return {}
    try:
        with open(path, "rb", opener=without_waiting) as file:
            raw = file.read(MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise _unreadable(os.path.basename(path), error) from error
    return _parse_config(os.path.basename(path), raw)


def _parse_config(name: str, raw: bytes) -> dict[str, Any]:
    try:
        encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = raw.decode(encoding)
        try:
            config = orjson.loads(text)
        except ValueError:
            config = json.loads(text)  # which takes NaN, as PEFT writes it
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, error) from error
    if not isinstance(config, dict):
        raise _unreadable(name, f"it holds a {type(config).__name__}, expected an object")
    return config


def _unreadable(name: str, problem: object) -> LoRAFormatError:
    return LoRAFormatError(
        f"{name} beside the file cannot be read ({str(problem)[:200]}), so its alpha is unknown. Repair or remove it."
    )


@lru_cache(maxsize=64)
def _dialects(keys: tuple[str, ...]) -> tuple[Dialect, ...]:
    """The dialects that recognise these names, the most particular first."""
    return tuple(dialect for dialect in DIALECTS if keys and dialect.matches(list(keys)))


def _read(file: TensorFile, config: Mapping[str, Any], *, weights: bool) -> LoRA:
    keys = file.keys
    for dialect in _dialects(tuple(keys)):
        try:
            lora = dialect.read(file, file.get if weights else file.peek, config)
        except LoRAFormatError as error:
            family = family_of(keys, {})
            if family and not family.beside and family not in NEIGHBOURS:  # a module of a model may lie beside
                raise explain(file, config) from error
            raise
        if lora.layers:
            return replace(lora, notes=file.notes + lora.notes) if file.notes else lora
    raise explain(file, config)
