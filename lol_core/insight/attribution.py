"""Which modules of a LoRA a model's prediction rests on."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from lol_core.core.batch import stack
from lol_core.core.lora import LoRA
from lol_core.learning.checkpoint import Checkpoint


def contributions(checkpoint: Checkpoint, lora: LoRA, output: int = 0) -> pd.Series:
    """∂ prediction / ∂ s of every module at s = 1, where s multiplies its ΔW: module → how fast the prediction grows
    with that module's update.

    Regression: in the units of the target. Yes/no and classes: of the logit. Zero for a model that is constant around a
    LoRA (nearest neighbours). Raises ModelError when the LoRA does not fit the model.
    """
    model = checkpoint.model.eval()
    batch = stack([lora], checkpoint.spec).to(model.device)
    scales = [
        torch.ones(len(indices), 1, 1, device=batch.device, requires_grad=True) for _, indices in checkpoint.spec.groups
    ]
    scaled = replace(batch, U=tuple(U * scale for U, scale in zip(batch.U, scales, strict=True)))
    with torch.enable_grad():
        predicted = model(scaled)[0, output]
        gradients = (
            torch.autograd.grad(predicted, scales)
            if predicted.requires_grad
            else [torch.zeros_like(scale) for scale in scales]
        )
    unit = checkpoint.task.units[output]
    names = [checkpoint.spec.modules[i].name for _, indices in checkpoint.spec.groups for i in indices]
    values = torch.cat([gradient.flatten() for gradient in gradients]).cpu().numpy() * unit
    return pd.Series(values, index=names).reindex([module.name for module in checkpoint.spec.modules])
