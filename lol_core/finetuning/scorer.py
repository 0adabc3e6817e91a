"""The ruler of the image zoos: a small CLIP of its own, and the CLIP score of generated images.

Any transformers `CLIPModel` folder or hub id serves as a scorer; the small one is trained here on the same drawn
pictures as the base model, with other weights and another text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.fitting import fit
from lol_core.finetuning.pictures import SIDE

SCORE_WEIGHT = 2.5
"""w of Hessel et al. (2021), eq. (1): CLIP-S = w · max(cos, 0)."""


@dataclass(frozen=True)
class ScorerSettings:
    steps: int = 1600
    batch: int = 64
    rate: float = 1e-3
    seed: int = 1


def make_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=tower | {"image_size": SIDE, "patch_size": 8}, projection_dim=128)
    )


def make_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    return CLIPProcessor(images, tokenizer)


def train_scorer(
    images: np.ndarray,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    settings: ScorerSettings,
    reporter: Reporter = SILENT,
) -> CLIPModel:
    """CLIP's symmetric contrastive loss on pictures (k, 64, 64, 3) and their captions, half of the pictures
    mirrored.
    """
    torch.manual_seed(settings.seed)
    model = make_scorer(tokenizer)
    tokens = tokenizer(captions, padding="longest", truncation=True, return_tensors="pt")

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(images), (settings.batch,), generator=generator)
        x = torch.from_numpy(images[index.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        mirrored = torch.rand(settings.batch, generator=generator) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        out = model(
            input_ids=tokens.input_ids[index],
            attention_mask=tokens.attention_mask[index],
            pixel_values=x,
            return_loss=True,
        )
        return out.loss

    fit(folder, model, loss_of, steps=settings.steps, rate=settings.rate, seed=settings.seed, reporter=reporter)
    return model


def check_scorer(source: str) -> None:
    """Read what a CLIP model says of itself, not its weights. Raises DataMissingError when there is no such model."""
    try:
        found = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError) as error:
        raise _missing(source, error) from error
    if found != CLIPConfig.model_type:
        raise _missing(source, found)


def _missing(source: str | Path, reason: object) -> DataMissingError:
    return DataMissingError(
        f"{source}: no CLIP model there ({reason}). Pass a folder or hub id of a transformers CLIPModel."
    )


class Scorer:
    """CLIP scores from a transformers CLIPModel folder (or hub id).

    Raises:
        DataMissingError: when there is no such model.
    """

    def __init__(self, source: str | Path, device: str = "cpu"):
        try:
            self.model = CLIPModel.from_pretrained(source, dtype=torch.float32).eval().to(device)
            self.processor = CLIPProcessor.from_pretrained(source)
        except OSError as error:
            raise _missing(source, error) from error
        self.device = device

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors (k, d)."""
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        return _unit(self.model.get_text_features(**tokens))

    @torch.no_grad()
    def embed_images(self, images: list[Image.Image]) -> Tensor:
        """Unit vectors (k, d)."""
        pixels = self.processor.image_processor(images, return_tensors="pt").pixel_values.to(self.device)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def scores(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """CLIP score (k,) of each image with its prompt: w · max(cos, 0) (Hessel et al. 2021, eq. 1), w = 2.5."""
        return SCORE_WEIGHT * (self.embed_images(images) * self.embed_texts(prompts)).sum(1).clamp_min(0).cpu()


def _unit(features: Any) -> Tensor:
    tensor = getattr(features, "pooler_output", features)  # transformers 5 returns an output object, 4 a tensor
    return torch.nn.functional.normalize(tensor, dim=-1)


def retrieval(
    scorer: Scorer, images: list[Image.Image], captions: list[str], candidates: int = 32, *, seed: int = 0
) -> dict[str, float]:
    """Share of held-out images whose own caption scores highest among `candidates` distinct ones, and of captions
    whose own image does.

    Chance is 1/candidates.
    """
    candidates = min(candidates, len(set(captions)))
    pictures, texts = scorer.embed_images(images), scorer.embed_texts(captions)
    order = np.random.default_rng(seed).permutation(len(images))
    hits: dict[str, list[float]] = {"image_to_text": [], "text_to_image": []}
    group: list[int] = []
    for i in order:
        if captions[i] in {captions[j] for j in group}:
            continue
        group.append(int(i))
        if len(group) == candidates:
            similar = pictures[group] @ texts[group].T
            right = torch.arange(candidates, device=similar.device)
            hits["image_to_text"].append((similar.argmax(1) == right).float().mean().item())
            hits["text_to_image"].append((similar.argmax(0) == right).float().mean().item())
            group = []
    return {name: float(np.mean(values)) for name, values in hits.items()}
