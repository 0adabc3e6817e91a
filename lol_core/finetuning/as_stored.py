"""What an adapter is once it is stored: in half precision, and as its library merges it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lol_core.errors import TaskError


@torch.no_grad()
def round_to_half(parameters: Iterable[nn.Parameter], name: str) -> None:
    """What is held from then on is what a file in half precision holds. Raises TaskError when training diverged."""
    for parameter in parameters:
        parameter.copy_(parameter.half().float())
        if not bool(parameter.isfinite().all()):
            raise TaskError(f"{name}: not finite after training; its learning rate is too high.")


def write_half(state: Mapping[str, Tensor], path: Path) -> None:
    half = {key: value.detach().half().contiguous() for key, value in state.items()}
    save_file(half, path, metadata={"format": "pt"})


def write_peft(model: Any, folder: Path, base_name: str) -> Path:
    """A PEFT folder; the path of the weights in it."""
    config = model.peft_config["default"]
    config.inference_mode, config.base_model_name_or_path = True, base_name
    config.save_pretrained(str(folder))  # which makes it
    path = folder / "adapter_model.safetensors"
    write_half(peft.get_peft_model_state_dict(model, save_embedding_layers=False), path)
    return path


def merge_error(modules: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """How far the weights that the library merges are from the base's with what is read from the file:
    ‖W_library − W_read‖ / ‖W_library − W_base‖ over all modules, each given as (W_library, W_read, W_base).
    """
    off = size = 0.0
    for merged, read_here, before in modules:
        off += float((merged - read_here).square().sum())
        size += float((merged - before).square().sum())
    return float((off / size) ** 0.5)
