"""Fine-tuning in each variant of LoRA, one adapter at a time, by PEFT or LyCORIS: from the same pictures, noise and
time steps. A build that is stopped goes on where it was.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.as_stored import merge_error, round_to_half, write_half, write_peft
from lol_core.finetuning.base_model import diffusion_loss
from lol_core.finetuning.dreambooth import Base, Draws, Subject, tail_mean
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.picture_data import write_people
from lol_core.finetuning.recipes import ImageRecipe, Run, plan_runs
from lol_core.finetuning.side_by_side import build_side_by_side
from lol_core.finetuning.variants import BASE, Library, Method, Place, Variant, named, recipe_of
from lol_core.formats import read

ENDS = {
    Place.ATTENTION: (".to_v", ".to_out.0"),
    Place.RESNETS: (".conv1", ".conv2"),
    Place.EMBEDDING: (".token_embedding",),
}
CONFIGURATIONS: dict[Method, type[peft.PeftConfig]] = {
    Method.LORA: peft.LoraConfig,
    Method.LOHA: peft.LoHaConfig,
    Method.LOKR: peft.LoKrConfig,
}


class Trained:
    """One adapter in training over a copy of the base, so that what a variant does to the base's own weights (PiSSA
    takes its start out of them) stays in the copy.
    """

    def __init__(self, base: Base, variant: Variant, run: Run):
        self.base, self.variant = base, variant
        self.text_encoder = base.pipeline.text_encoder
        self.unet = base.unet
        if variant.place is Place.EMBEDDING:
            host: nn.Module = copy.deepcopy(self.text_encoder)
            self.text_encoder = host
        else:
            host = copy.deepcopy(self.unet)
            self.unet = host
        self.names = [name for name, _ in host.named_modules() if name.endswith(ENDS[variant.place])]
        if not self.names:
            raise TaskError(f"{variant.title} adapts {variant.place}, and the base has none.")
        self.before = {name: _weight(host.get_submodule(name)) for name in self.names}
        torch.manual_seed(run.number)
        rate = run.learning_rate * variant.rate
        if variant.library is Library.LYCORIS:
            self.modules = _lycoris(host, self.names)
            self.optimizer = torch.optim.AdamW([p for m in self.modules.values() for p in m.parameters()], lr=rate)
            return
        sizes = {"r": 4, "lora_alpha": 4} if variant.method is Method.LORA else {}
        config = CONFIGURATIONS[variant.method](target_modules=self.names, **sizes, **variant.options)
        self.model: Any = peft.get_peft_model(host, config)
        if variant.ratio != 1:
            self.optimizer = create_loraplus_optimizer(
                self.model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=variant.ratio
            )
        else:
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=rate)

    def text(self, subject: Subject, ids: Tensor) -> Tensor:
        """Hidden states (1, t, d) of the prompt."""
        return self.text_encoder(ids).last_hidden_state if self.variant.place is Place.EMBEDDING else subject.text

    def write(self, folder: Path, base_name: str) -> Path:
        """The adapter as its library keeps it, in half precision, in this folder or beside it as a file of its name;
        what is held from then on is what was written. Raises TaskError when training diverged.
        """
        round_to_half((p for group in self.optimizer.param_groups for p in group["params"]), folder.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.variant.library is Library.LYCORIS:
            state = {
                f"{module.lora_name}.{key}": value
                for module in self.modules.values()
                for key, value in module.custom_state_dict().items()
            }
            path = folder.with_suffix(".safetensors")
            write_half(state, path)
            return path
        return write_peft(self.model, folder, base_name)

    @torch.no_grad()
    def merged(self, path: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The weights of every module: as the library merges them, with what is read from the file, and of the base.
        PiSSA's base is what it left of the weights.
        """
        lora = read(path if self.variant.library is Library.LYCORIS else path.parent)
        for name in self.names:
            if self.variant.library is Library.LYCORIS:
                module, before = self.modules[name], self.before[name]
                merged, own = module.get_merged_weight()[0], lora[module.lora_name]
            else:
                layer = self.model.base_model.model.get_submodule(name)
                before = _weight(layer.get_base_layer()).clone()
                layer.merge(safe_merge=True)
                merged, own = _weight(layer.get_base_layer()).clone(), lora[name]
            yield merged, own.merge(before.reshape(own.weight_shape)).reshape(merged.shape), before


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach()
    return weight


def _lycoris(host: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    try:
        from lycoris.modules import LoConModule
    except ImportError as error:
        raise DataMissingError("LoCon needs the package lycoris-lora (requirements-dev.txt).") from error
    modules = {}
    for name in names:
        module = LoConModule(
            f"lora_unet_{name.replace('.', '_')}", host.get_submodule(name), lora_dim=4, alpha=4, use_tucker=True
        )
        module.apply_to()
        modules[name] = module
    return modules


def finetune(
    base: Base, recipe: ImageRecipe, variant: Variant, run: Run, *, subject: Subject, folder: Path
) -> dict[str, Any]:
    """One adapter, trained and written into `folder`; its row of labels. Raises TaskError when training diverged."""
    trained = Trained(base, variant, run)
    tokens = base.pipeline.tokenizer([run.prompt], padding="max_length", truncation=True, return_tensors="pt")
    draws = Draws.of(run, subject, base.scheduler.config.num_train_timesteps)
    losses = []
    for _ in range(run.steps):
        index, timesteps, noise = draws.next()
        text = trained.text(subject, tokens.input_ids).expand(run.batch_size, -1, -1)
        loss = diffusion_loss(
            trained.unet, base.scheduler, subject.latents[index], text, noise=noise, timesteps=timesteps
        ).mean()
        trained.optimizer.zero_grad()
        loss.backward()
        trained.optimizer.step()
        losses.append(loss.item())
    path = trained.write(folder / "loras" / run.name, recipe.base)
    error = merge_error(trained.merged(path))
    return {
        "lora": f"loras/{path.name if variant.library is Library.LYCORIS else run.name}",
        **run.labels,
        "learning_rate": run.learning_rate * variant.rate,
        "seed": run.number,
        "final_train_loss": tail_mean(losses),
        "merge_error": error,
    }


_worker: dict[str, Any] = {}


def _start(recipe: ImageRecipe, base: str, machine: Machine, *, device: str) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(machine.threads)
    _worker.update(recipe=recipe, base=Base(base, device), person=0)


def _finetune(folder: Path, key: str, run: Run) -> tuple[str, dict[str, Any]]:
    (variant,) = named([key])
    base, recipe = _worker["base"], _worker["recipe"]
    if _worker["person"] != run.number:  # the variants of one person follow each other
        _worker.update(person=run.number, subject=base.subject(run, recipe.resolution))
    try:
        return key, finetune(base, recipe, variant, run, subject=_worker["subject"], folder=folder / key)
    except TaskError as error:
        return key, {"lora": f"loras/{run.name}", "reason": str(error)}


def build(
    samples: Path,
    out: Path,
    variants: Sequence[Variant],
    count: int,
    *,
    machine: Machine,
    reporter: Reporter = SILENT,
    recipe: ImageRecipe | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fine-tune people 1 … count in every variant; see `build_side_by_side`."""
    recipe = recipe or recipe_of(samples)
    people = out / f"people-{count}"
    if not (people / "identity_CelebA.txt").is_file():
        write_people(people, count, int(machine.workers), reporter)
    runs = {run.name: run for run in plan_runs(recipe, people, count)}
    return build_side_by_side(
        out,
        variants,
        runs,
        machine,
        start=_start,
        started=(recipe, str(samples / BASE), machine),
        finetune=_finetune,
        reporter=reporter,
    )
