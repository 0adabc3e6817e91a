"""What fitting a model takes of the memory, known before anything is allocated."""

from __future__ import annotations

import psutil
import torch

from lol_core.core.batch import WeightSpec
from lol_core.errors import ModelError
from lol_core.learning.models import MODELS, ModelConfig, make_model

BYTES_USED = 4
"""float32."""
COPIES_FITTED = 8
"""Of every weight while it is fitted: itself, its gradient, two moments, the best so far, and what an interrupted epoch
goes back to (itself and its moments).
"""
COPIES_USED = 1
SHARE = 0.8
"""Share of the free memory that a model may take."""


def memory_needed(model: str, spec: WeightSpec, outputs: int, config: ModelConfig, *, fitted: bool = True) -> int:
    """Bytes of a model's weights and buffers, with all copies that fitting keeps of them, or without when it is only
    used. Nothing is allocated. Raises ModelError when the model cannot be made of these modules.
    """
    with torch.device("meta"):
        sketch = make_model(model, spec, outputs, config)
    buffers = sum(buffer.numel() for buffer in sketch.buffers())
    copies = COPIES_FITTED if fitted else COPIES_USED
    return BYTES_USED * (copies * sketch.n_parameters + (3 if fitted else 1) * buffers)


def free_memory(device: torch.device) -> float:
    """Free bytes of a device."""
    return float(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def check_memory(
    model: str, spec: WeightSpec, outputs: int, config: ModelConfig, *, device: torch.device, fitted: bool = True
) -> None:
    """Raises ModelError when a model would not fit into the free memory of a device, or cannot be made at all."""
    needed, free = memory_needed(model, spec, outputs, config, fitted=fitted), free_memory(device)
    if needed > SHARE * free:
        raise ModelError(
            f"{MODELS[model].title} of {len(spec.modules)} modules at width {config.width} needs about"
            f" {needed / 1e9:.3g} GB of memory{' to be trained' if fitted else ''}, and {free / 1e9:.3g} GB are free."
            " Choose GL-net or SVD, a smaller width, or fewer modules."
        )
