"""Reading LoRA files of every dialect: `read` gives the LoRA, `probe` what its header says, without touching the
weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats import cloneofsimo, diffusers, kohya, mlx, nunchaku, peft, sam, xlabs
from lol_core.formats.base_models import suggest_base_model
from lol_core.formats.container import SUFFIXES, TensorFile, open_tensors
from lol_core.formats.roles import Fetch

__all__ = ["DIALECTS", "SUFFIXES", "probe", "read", "suggest_base_model"]

DIALECTS = tuple(module.DIALECT for module in (sam, cloneofsimo, nunchaku, mlx, xlabs, diffusers, kohya, peft))
"""Tried in this order; the first that recognises the keys reads the file."""

OTHER_FAMILIES = (
    ("prompt_embeddings", "prompt tuning: it learns input tokens"),
    ("oft_", "OFT or BOFT: it rotates weights"),
    ("ia3_", "IA³: it rescales activations"),
    (".on_input", "IA³: it rescales activations"),
    ("vera_lambda", "VeRA: its factors are shared random matrices"),
    (".diff", "LyCORIS full or norm differences"),
    ("w_norm", "LyCORIS norm differences"),
    (".a1.weight", "GLoRA: it also maps the base weight"),
)


def read(path: Path | str) -> LoRA:
    """Read a LoRA file, or a PEFT folder. Raises LoRAFormatError with the reason and what to do when it is not one."""
    file, config = _open(Path(path))
    return _read(file, file.get, config)


def probe(path: Path | str) -> LoRA:
    """The same LoRA with tensors on the meta device: names, shapes, ranks, scales, dtypes and metadata, but no weights
    read.
    """
    file, config = _open(Path(path))
    return _read(file, file.peek, config)


def _open(path: Path) -> tuple[TensorFile, dict[str, Any]]:
    if path.is_dir():
        found = [
            path / name
            for name in ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")
            if (path / name).is_file()
        ]
        if not found:
            raise LoRAFormatError(
                f"{path}: a folder without adapter_model.safetensors or adapter_model.bin. Name the file itself."
            )
        path = found[0]
    file = open_tensors(path)
    config_path = path.parent / "adapter_config.json"
    if not config_path.is_file():
        return file, {}
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LoRAFormatError(
            f"{config_path.name} beside the file cannot be read ({error}), so its alpha is unknown. Repair or"
            " remove it."
        ) from error
    return file, config if isinstance(config, dict) else {}


def _read(file: TensorFile, fetch: Fetch, config: dict[str, Any]) -> LoRA:
    keys = file.keys
    for dialect in DIALECTS:
        if dialect.matches(keys):
            lora = dialect.read(file, fetch, config)
            if lora.layers:
                return lora
    for mark, family in OTHER_FAMILIES:
        if any(mark in key for key in keys):
            raise NotLowRankError(
                f"Another kind of adapter ({family}) without a low-rank product: {len(keys)} tensors, e.g. {keys[0]!r}."
                " Nothing to embed."
            )
    if len(keys) <= 4 and all(key.startswith("<") and key.endswith(">") for key in keys):
        raise NotLowRankError(
            f"A textual inversion: {len(keys)} token embedding(s) {', '.join(keys)}, no low-rank product."
        )
    shapes = {file.shapes[key] for key in keys}
    if all(torch.Size(shape).numel() <= 1 for shape in shapes):
        raise NotLowRankError(
            f"{len(keys)} single numbers (e.g. {keys[0]!r}) and no matrices: settings of adapters without their"
            " factors."
        )
    raise NotLowRankError(
        f"No low-rank pairs among its {len(keys)} tensors (e.g. {keys[0]!r}): a model, an optimizer state or an unknown"
        " kind of adapter."
    )
