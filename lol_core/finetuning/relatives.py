"""Bases of the shapes of another: what LoRAs fit, and models that read them do not know."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.base_model import BaseSettings, assemble, draw_once, encode, train_diffusion
from lol_core.finetuning.fitting import threads
from lol_core.finetuning.pictures import familiar_picture


def train_relative(
    start: Path,
    out: Path,
    work: Path,
    drawings: Path,
    *,
    pictures: range,
    settings: BaseSettings,
    anew: bool = False,
    reporter: Reporter = SILENT,
) -> None:
    """A base of the same shapes as the pipeline folder `start`, with its autoencoder and its tokenizer: the U-Net and
    the text encoder trained further, or `anew` from nothing, on the pictures of these numbers; in half precision.

    Everything half-done lies in `work`; the same call goes on from there, also after Stopped.
    """
    if (out / "model_index.json").is_file():
        return
    with threads(1):
        drawing = reporter.part(0.0, 0.1, "Pictures: ")
        images, captions = draw_once(
            work, "familiar", familiar_picture, drawings, seeds=pictures, workers=1, reporter=drawing
        )
        vae = AutoencoderKL.from_pretrained(start, subfolder="vae", torch_dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
        unet, text = train_diffusion(
            encode(vae, images),
            captions,
            tokenizer,
            work / "unet_run",
            settings=settings,
            start=None if anew else start,
            reporter=reporter.part(0.1, 1.0, "Diffusion: "),
        )
    assemble(vae, unet, text, tokenizer).to(dtype=torch.float16).save_pretrained(out)
