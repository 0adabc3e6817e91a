"""DreamBooth fine-tuning of a diffusers text-to-image model with LoRA: one at a time by PEFT and accelerate, or
many stacked over one frozen base.

Both ways start from the same factors, draw the same pictures, noise and time steps, and take the same AdamW steps,
so they agree up to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.base_model import diffusion_loss
from lol_core.finetuning.recipes import ImageRecipe, Run
from lol_core.finetuning.start import Start

Factors = dict[str, tuple[Tensor, Tensor]]
"""Adapted module → (A, B), as PEFT names them: A (r, in), B (out, r), ΔW = B A."""


def open_base(source: str | Path, device: str = "cpu") -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline from a folder or the hub, in full precision, frozen. Raises DataMissingError when
    it is not there.
    """
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(source), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError) as error:
        raise DataMissingError(
            f"{source}: no Stable Diffusion pipeline there ({str(error).splitlines()[0]}). Pass a diffusers folder or a"
            " hub id."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return pipeline.to(device)


@dataclass
class Subject:
    """What a run trains on: scaled latents (k, c, h, w) of its pictures and the hidden states (1, t, d) of its
    prompt.
    """

    latents: Tensor
    text: Tensor


class Base:
    """A frozen text-to-image model and what fine-tuning needs of it."""

    def __init__(self, source: str | Path, device: str = "cpu"):
        self.pipeline = open_base(source, device)
        self.unet, self.scheduler, self.device = self.pipeline.unet, self.pipeline.scheduler, device
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        self._texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def subject(self, run: Run, resolution: int) -> Subject:
        pixels = torch.stack([_pixels(Path(path), resolution) for path in run.images]).to(self.device)
        vae = self.pipeline.vae
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(8)]) * vae.config.scaling_factor
        return Subject(latents, self.text(run.prompt))

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Hidden states (1, t, d) of a prompt."""
        if prompt not in self._texts:
            tokenizer = self.pipeline.tokenizer
            ids = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
            self._texts[prompt] = self.pipeline.text_encoder(ids.to(self.device)).last_hidden_state
        return self._texts[prompt]

    def fresh_factors(self, recipe: ImageRecipe, number: int) -> Factors:
        """The factors PEFT initialises for the LoRA of this number: A Kaiming-uniform, B zero."""
        factors: Factors = {}
        generator_state = torch.get_rng_state()
        torch.manual_seed(recipe.start.seed(number))
        for name, linear in adapted(self.unet, recipe.targets).items():
            A = torch.empty(recipe.rank, linear.in_features)
            nn.init.kaiming_uniform_(A, a=5**0.5)  # as peft.tuners.lora.LoraLayer.reset_lora_parameters does
            factors[name] = (A.to(self.device), torch.zeros(linear.out_features, recipe.rank, device=self.device))
        torch.set_rng_state(generator_state)
        return factors


def adapted(unet: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers whose names end in one of the targets, in the model's order. Raises TaskError when there is
    none.
    """
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple("." + t for t in targets))
    }
    if not layers:
        raise TaskError(f"No linear layer of the base model ends in {', '.join(targets)}.")
    return layers


def _pixels(path: Path, resolution: int) -> Tensor:
    try:
        image = Image.open(path).convert("RGB")
    except OSError as error:
        raise DataMissingError(f"{path}: no readable picture ({error}).") from error
    image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@dataclass
class Draws:
    """What chance decides in a run, step by step, from its number: which pictures, what noise, which time steps."""

    generator: torch.Generator
    n_images: int
    batch_size: int
    shape: torch.Size
    n_timesteps: int

    @classmethod
    def of(cls, run: Run, subject: Subject, n_timesteps: int) -> Draws:
        return cls(
            torch.Generator().manual_seed(run.number),
            len(subject.latents),
            run.batch_size,
            subject.latents.shape[1:],
            n_timesteps,
        )

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(self.n_images, (self.batch_size,), generator=self.generator)
        timesteps = torch.randint(self.n_timesteps, (self.batch_size,), generator=self.generator)
        return index, timesteps, torch.randn((self.batch_size, *self.shape), generator=self.generator)


@dataclass
class Outcome:
    """A finished run: its factors and the mean loss over its last quarter of steps."""

    run: Run
    factors: Factors
    final_loss: float


def finetune_one(base: Base, recipe: ImageRecipe, run: Run, mixed_precision: str = "no") -> Outcome:
    """One LoRA by PEFT and accelerate. `mixed_precision`: no, fp16 or bf16."""
    subject = base.subject(run, recipe.resolution)
    fresh = base.fresh_factors(recipe, run.number)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=base.device == "cpu")
    base.unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.scale * recipe.rank, target_modules=list(fresh)))
    try:
        weights = {name: _peft_weights(base.unet.get_submodule(name)) for name in fresh}
        with torch.no_grad():
            for name, (A, B) in fresh.items():
                weights[name][0].copy_(A)
                weights[name][1].copy_(B)
        if recipe.start is Start.FROZEN:
            for A, _ in weights.values():
                A.requires_grad_(False)
        parameters = [weight for pair in weights.values() for weight in pair if weight.requires_grad]
        optimizer = accelerator.prepare(
            torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=recipe.weight_decay)
        )
        draws = Draws.of(run, subject, base.scheduler.config.num_train_timesteps)
        losses = []
        for _ in range(run.steps):
            index, timesteps, noise = draws.next()
            text = subject.text.expand(run.batch_size, -1, -1)
            with accelerator.autocast():
                loss = diffusion_loss(
                    base.unet,
                    base.scheduler,
                    subject.latents[index],
                    text,
                    noise=noise.to(base.device),
                    timesteps=timesteps.to(base.device),
                ).mean()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        factors = {name: (A.detach().clone(), B.detach().clone()) for name, (A, B) in weights.items()}
    finally:
        base.unet.unload_lora()
        base.unet.requires_grad_(False)
    return Outcome(run, factors, tail_mean(losses))


def _peft_weights(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


class StackedLinear(nn.Module):
    """A frozen linear layer with K LoRAs of one scale, each seeing its own consecutive part of the batch:
    x (K·b, t, in) → (K·b, t, out).
    """

    def __init__(self, linear: nn.Linear, A: list[Tensor], B: list[Tensor], scale: float):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.A, self.B = nn.ParameterList(A), nn.ParameterList(B)

    def forward(self, x: Tensor) -> Tensor:
        A, B = torch.stack(list(self.A)), torch.stack(list(self.B))
        own = x.reshape(len(A), -1, x.shape[-1])
        change = (own @ A.transpose(1, 2)) @ B.transpose(1, 2)
        return self.linear(x) + self.scale * change.reshape(*x.shape[:-1], -1)


def finetune_stack(base: Base, recipe: ImageRecipe, runs: Sequence[Run]) -> list[Outcome]:
    """Many LoRAs at once over the frozen base. They must agree in batch size and number of steps; everything else
    may differ.
    """
    if len({(run.batch_size, run.steps) for run in runs}) != 1:
        raise TaskError("Runs that are trained in one stack must have the same batch size and number of steps.")
    subjects = [base.subject(run, recipe.resolution) for run in runs]
    starts = [base.fresh_factors(recipe, run.number) for run in runs]
    linears = adapted(base.unet, recipe.targets)
    stacked = {
        name: StackedLinear(linear, [s[name][0] for s in starts], [s[name][1] for s in starts], recipe.scale)
        for name, linear in linears.items()
    }
    if recipe.start is Start.FROZEN:
        for layer in stacked.values():
            layer.A.requires_grad_(False)
    groups = [
        {
            "params": [p for layer in stacked.values() for p in (layer.A[k], layer.B[k]) if p.requires_grad],
            "lr": run.learning_rate,
            "weight_decay": recipe.weight_decay,
        }
        for k, run in enumerate(runs)
    ]
    optimizer = torch.optim.AdamW(groups, foreach=True)
    draws = [
        Draws.of(run, subject, base.scheduler.config.num_train_timesteps)
        for run, subject in zip(runs, subjects, strict=True)
    ]
    text = torch.cat([subject.text.expand(runs[0].batch_size, -1, -1) for subject in subjects])
    losses = []
    try:
        for name, layer in stacked.items():
            base.unet.set_submodule(name, layer)
        for _ in range(runs[0].steps):
            drawn = [d.next() for d in draws]
            latents = torch.cat(
                [subject.latents[index] for subject, (index, _, _) in zip(subjects, drawn, strict=True)]
            )
            timesteps, noise = (
                torch.cat(parts).to(base.device) for parts in ([d[1] for d in drawn], [d[2] for d in drawn])
            )
            each = (
                diffusion_loss(base.unet, base.scheduler, latents, text, noise=noise, timesteps=timesteps)
                .view(len(runs), -1)
                .mean(1)
            )
            optimizer.zero_grad()
            each.sum().backward()
            optimizer.step()
            losses.append(each.detach().cpu())
    finally:
        for name, linear in linears.items():
            base.unet.set_submodule(name, linear)
    every = torch.stack(losses)
    return [
        Outcome(
            run,
            {name: (layer.A[k].detach(), layer.B[k].detach()) for name, layer in stacked.items()},
            tail_mean(every[:, k].tolist()),
        )
        for k, run in enumerate(runs)
    ]


def tail_mean(losses: list[float]) -> float:
    """Over the last quarter of steps."""
    tail = losses[-max(1, len(losses) // 4) :]
    return sum(tail) / len(tail)


def write_lora(path: Path, factors: Factors, base_name: str, alpha: float | None = None) -> None:
    """A diffusers LoRA file in half precision. alpha: as diffusers keeps it, in the header; without it the scale is 1.
    Raises TaskError when training diverged.
    """
    tensors, metadata = {}, {"format": "pt", "base_model": base_name}
    if alpha is not None:
        rank = len(next(iter(factors.values()))[0])
        adapter = {"unet.r": rank, "unet.lora_alpha": alpha, "unet.target_modules": sorted(factors)}
        metadata["lora_adapter_metadata"] = json.dumps(adapter)
    for name, pair in factors.items():
        for letter, factor in zip("AB", pair, strict=True):
            half = factor.half().cpu().contiguous()
            if not half.isfinite().all():
                raise TaskError(f"{path.name}: {name} is not finite after training; its learning rate is too high.")
            tensors[f"unet.{name}.lora_{letter}.weight"] = half
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
