"""Synthetic LoRAs and small zoos for tests of mathematics and behaviour. Nothing here was fine-tuned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.groups import GL
from lol_core.core.lora import LoRA, LoRALayer

Shape = tuple[str, int, int, int]
SHAPES: tuple[Shape, ...] = (("a", 7, 5, 3), ("b", 6, 9, 3), ("c", 7, 5, 3))


def random_lora(
    shapes: Sequence[Shape] = SHAPES, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> LoRA:
    """Gaussian factors; shapes: (name, n, m, r)."""
    generator = torch.Generator().manual_seed(seed)

    def factor(k: int, r: int) -> torch.Tensor:
        return torch.randn(k, r, generator=generator, dtype=torch.float64).to(dtype)

    layers = [LoRALayer.pair(name, factor(n, r), factor(m, r), scale=scale) for name, n, m, r in shapes]
    return LoRA(tuple(layers), "synthetic")


def turned(lora: LoRA, seed: int = 0, condition: float = 10.0) -> LoRA:
    """The same function in another gauge: an R ∈ GL(r) of that condition number for each module."""
    generator = torch.Generator().manual_seed(seed)
    return lora.act({y.name: GL.sample(y.rank, condition=condition, generator=generator) for y in lora.layers})


def random_batch(
    shapes: Sequence[Shape] = SHAPES, count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    loras = [random_lora(shapes, seed + i) for i in range(count)]
    return stack(loras, shared_spec(loras), dtype)


def write_peft(
    folder: Path, lora: LoRA, alpha: float | None = None, dtype: torch.dtype = torch.float32, **config: object
) -> None:
    """Write a LoRA as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in lora.layers:
        tensors[f"base_model.model.{layer.name}.lora_A.weight"] = layer.V.T.to(dtype).contiguous()
        tensors[f"base_model.model.{layer.name}.lora_B.weight"] = layer.U.to(dtype).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = lora.layers[0].rank
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "base_model_name_or_path": "synthetic/base",
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))


MODULES: tuple[Shape, ...] = (
    ("layer.0.attention.self.key", 8, 6, 2),
    ("layer.0.attention.self.value", 8, 6, 2),
    ("layer.1.attention.self.key", 8, 6, 2),
)


def write_zoo(folder: Path, count: int = 40, shapes: Sequence[Shape] = MODULES, seed: int = 0) -> pd.DataFrame:
    """A folder of synthetic PEFT LoRAs whose labels are functions of ΔW: size (log norm), positive (sign of its trace),
    kind (text), author.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        lora = random_lora(shapes, seed=1000 * seed + i, scale=1.0)
        strength = float(np.exp(rng.uniform(-1, 1)))
        lora = LoRA(tuple(LoRALayer.pair(y.name, y.U * strength, y.V) for y in lora.layers), "synthetic")
        write_peft(folder / f"lora{i:03d}", lora)
        delta = lora.layers[0].delta(torch.float64)
        trace = float(delta.diagonal().sum())
        size = float(delta.norm().log())
        rows.append(
            {
                "name": f"lora{i:03d}",
                "size": size,
                "positive": int(trace > 0),
                "kind": "big" if size > 2 else "small",
                "author": f"author{i % 5}",
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "labels.csv", index=False)
    return table
