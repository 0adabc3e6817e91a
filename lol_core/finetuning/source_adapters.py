"""Fine-tuning on sources of Glosses in the variants whose layers images do not have: MergedLinear, by loralib, and
experts, by PEFT; plain LoRA beside each. Only the sentence encoder's last layer is adapted, so that the rest runs once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import torch
from torch import Tensor, nn

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError, TaskError
from lol_core.finetuning.as_stored import merge_error, round_to_half, write_half, write_peft
from lol_core.finetuning.glosses import ALPHA, HUB_ID, RANK, RECIPE, Encoder, Questions, fit
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.recipes import Hyperparameters
from lol_core.finetuning.side_by_side import Row, build_side_by_side
from lol_core.finetuning.upcycling import upcycle, upcycled
from lol_core.finetuning.variants import COPIES, PARTS, SOURCES, UPCYCLED, Library, Place, Variant, named
from lol_core.formats import read

LAYER = 5
ALWAYS, EACH = "noun.person", 40
"""The source that every LoRA has seen; questions of each source and split, of which noun.person has more."""
RECIPE_OF_VARIANTS = replace(
    RECIPE, name="variants", learning_rate_exponents=(-2.4, -2.0), epochs=(2,), batch_sizes=(8,), lora_dropout=0.0
)
"""Glosses' recipe at higher rates for fewer steps; PEFT has no dropout for the parameters of experts."""
ENDS = {
    Place.KEY_VALUE: ("attention.self.key", "attention.self.value"),
    Place.FEED_FORWARD: ("intermediate.dense", "output.dense"),
}
STACKS = ("output.experts.up_proj", "output.experts.down_proj")


class FusedAttention(nn.Module):
    """A BERT self-attention whose three projections are one, as GPT-2's are, and that one loralib's MergedLinear."""

    def __init__(self, attention: Any):
        super().__init__()
        try:
            import loralib
        except ImportError as error:
            raise DataMissingError("MergedLinear needs the package loralib (requirements-dev.txt).") from error
        self.size = attention.attention_head_size
        parts = (attention.query, attention.key, attention.value)
        inputs, outputs = attention.query.in_features, sum(part.out_features for part in parts)
        self.qkv = loralib.MergedLinear(inputs, outputs, r=RANK, lora_alpha=ALPHA, enable_lora=list(PARTS))
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        loralib.mark_only_lora_as_trainable(self.qkv)

    def forward(self, hidden: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
        """hidden (k, t, d), attention_mask additive → (k, t, d), and no attention weights."""
        heads = (*hidden.shape[:-1], -1, self.size)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in self.qkv(hidden).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return mixed.transpose(1, 2).flatten(2), None


class Adapter:
    """One adapter over a copy of the encoder, which merging changes."""

    def __init__(self, encoder: Encoder, variant: Variant, seed: int):
        self.variant = variant
        self.encoder = encoder.copy()
        torch.manual_seed(seed)
        self.encoder.model.requires_grad_(False)
        if variant.library is Library.LORALIB:
            attention = self.encoder.model.encoder.layer[LAYER].attention
            attention.self = FusedAttention(attention.self)
            self.model: Any = self.encoder.model
        else:
            layer = f"encoder.layer.{LAYER}."
            experts = variant.place is Place.EXPERTS
            adapted = [layer + end for end in (STACKS if experts else ENDS[variant.place])]
            # without modules PEFT would take those it has for every BERT
            targets = {"target_parameters": adapted, "target_modules": []} if experts else {"target_modules": adapted}
            self.model = peft.get_peft_model(
                self.encoder.model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **targets, **variant.options)
            )
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def write(self, folder: Path) -> Path:
        """A folder as the library keeps it (loralib's keys beside the configuration that PEFT wrote for them), in half
        precision; the path of the weights. Raises TaskError when training diverged.
        """
        round_to_half(self.parameters, folder.name)
        if self.variant.library is not Library.LORALIB:
            return write_peft(self.model, folder, UPCYCLED if self.variant.place is Place.EXPERTS else HUB_ID)
        import loralib

        folder.mkdir(parents=True, exist_ok=True)
        about = {"peft_type": "LORA", "base_model_name_or_path": HUB_ID, "r": RANK, "lora_alpha": ALPHA}
        (folder / "adapter_config.json").write_text(json.dumps(about | {"enable_lora": PARTS}, indent=1) + "\n")
        path = folder / "adapter_model.safetensors"
        write_half(loralib.lora_state_dict(self.model), path)
        return path

    @torch.no_grad()
    def merged(self, path: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The weights of every module: as the library merges them, with what is read from the file, and of the base."""
        lora = read(path.parent)
        if self.variant.library is Library.LORALIB:
            name = f"encoder.layer.{LAYER}.attention.self.qkv"
            layer = self.model.get_submodule(name)
            before = layer.weight.clone()
            layer.eval()  # which merges
            yield layer.weight.clone(), lora[name].merge(before), before
            return
        for name, layer in self.model.base_model.model.named_modules():
            if name not in lora.names:
                continue
            stacked = isinstance(layer, peft.tuners.lora.layer.ParamWrapper)

            def weight(layer: Any = layer, stacked: bool = stacked) -> Tensor:
                found: Tensor = layer.get_param() if stacked else layer.get_base_layer().weight
                return found.detach().clone()

            before = weight()
            layer.merge(safe_merge=True)
            yield weight(), lora[name].merge(before), before


def finetune(
    encoder: Encoder, splits: dict[str, Questions], variant: Variant, drawn: Hyperparameters, *, folder: Path
) -> Row:
    """One adapter, trained and written into `folder`; its row of labels. Raises TaskError when training diverged."""
    train = splits["train"]
    kept = torch.from_numpy(np.flatnonzero(~np.isin(train.source, drawn.dropped)))
    adapter = Adapter(encoder, variant, drawn.seed)
    scaled = replace(drawn, learning_rate=drawn.learning_rate * variant.rate)
    steps, final_loss = fit(adapter.encoder, train, kept, adapter.parameters, drawn=scaled)
    name = f"loras/{drawn.seed:04d}"
    path = adapter.write(folder / name)
    loss, correct = splits["test"].measure(adapter.encoder)
    row = {key: value for key, value in asdict(scaled).items() if key != "dropped"}
    return {
        "lora": name,
        **{f"saw {source}": int(source not in drawn.dropped) for source in SOURCES},
        **row,
        "steps": steps,
        "final_train_loss": final_loss,
        "test_loss": float(loss.mean()),
        "accuracy": float(correct.float().mean()),
        "merge_error": merge_error(adapter.merged(path)),
    }


_worker: dict[str, Any] = {}


def _start(base: str, questions: pd.DataFrame, experts: Path | None, threads: int, *, device: str) -> None:
    torch.set_num_threads(threads)
    encoder = Encoder(base, LAYER)
    splits = {str(name): Questions(part, encoder) for name, part in questions.groupby("split")}
    _worker.update(encoder=encoder, splits=splits)
    if experts is not None:
        _worker["upcycled"] = upcycled(encoder.copy(), experts, COPIES)


def _finetune(out: Path, key: str, drawn: Hyperparameters) -> tuple[str, Row]:
    (variant,) = named([key])
    encoder = _worker["upcycled" if variant.place is Place.EXPERTS else "encoder"]
    try:
        return key, finetune(encoder, _worker["splits"], variant, drawn, folder=out / key)
    except TaskError as error:
        return key, {"lora": f"loras/{drawn.seed:04d}", "reason": str(error)}


def build(
    base: str,
    samples: Path,
    out: Path,
    variants: Sequence[Variant],
    *,
    count: int,
    machine: Machine,
    reporter: Reporter = SILENT,
) -> Iterator[tuple[str, Row]]:
    """Fine-tune LoRAs 1 … count on subsets of sources in every variant; see `build_side_by_side`. Experts are made
    first, on the validation questions of all sources, in `out`/upcycled.
    """
    table = pd.read_csv(samples / "glosses" / "questions.csv")
    experts = out / UPCYCLED if any(variant.place is Place.EXPERTS for variant in variants) else None
    asked = table[table["source"].isin([ALWAYS, *SOURCES])]
    if experts is not None and not (experts / "experts.safetensors").is_file():
        encoder = Encoder(base, LAYER)
        parts = table[table["split"] == "validation"], asked[asked["split"] == "test"]
        train, test = (Questions(part, encoder) for part in parts)
        upcycle(encoder, train, experts, COPIES, measured_on=test, reporter=reporter)
    few = asked[asked["split"] != "validation"].groupby(["source", "split"]).head(EACH)
    runs = {
        f"{seed:04d}": Hyperparameters.draw(RECIPE_OF_VARIANTS, seed, list(SOURCES)) for seed in range(1, count + 1)
    }
    yield from build_side_by_side(
        out,
        variants,
        runs,
        machine,
        start=_start,
        started=(base, few, experts, machine.threads),
        finetune=_finetune,
        reporter=reporter,
    )
