"""A small latent diffusion model in the form of Stable Diffusion, trained from nothing on drawn pictures.

The folder it makes is an ordinary diffusers `StableDiffusionPipeline`: tokenizer, CLIP text encoder, U-Net with to_q,
to_k, to_v, to_out.0, variational autoencoder (64 × 64 pixels → 8 × 8 × 16), scheduler. It learns to predict the clean
latents from noisy ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.fitting import fit, threads
from lol_core.finetuning.pictures import SIDE, PictureMaker, any_picture, draw_many, familiar_picture
from lol_core.finetuning.scorer import Scorer, ScorerSettings, make_processor, retrieval, train_scorer
from lol_core.insight.generation import Painter, Sampling, contact_sheet

MAX_TOKENS = 28
REDUCED = 8
"""Pixels of a side that become one latent."""
LATENT_CHANNELS = 16
CAPTION_DROPOUT = 0.1
"""Share of captions replaced by the empty one, so that the model can also be run without a prompt (classifier-free
guidance).
"""
LEAST_SIGMA = 0.2
SAMPLE_PROMPTS = (
    "a dog in a park",
    "a church on a red background",
    "two cats in the snow",
    "a truck in a city",
    "a smiling person with a yellow hat on the beach",
    "a frowning bearded person with no hair on a blue background",
    "a portrait of a smiling clean-shaven person with long red hair and glasses at night",
)


@dataclass(frozen=True)
class BaseSettings:
    """How the base model is trained. Rates are AdamW's peaks."""

    vae_steps: int = 3000
    vae_guided_steps: int = 300
    vae_batch: int = 8
    vae_rate: float = 1e-3
    kl_weight: float = 5e-4
    steps: int = 8000
    batch: int = 32
    rate: float = 1e-3
    seed: int = 0


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with a byte-pair vocabulary of its own: every string can be written in it, the captions' words
    in one token each.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1600,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator([*captions, "skd sks photo of"], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    vocabulary = dict(model["vocab"])
    for letter in alphabet:  # a letter that ended no word of the captions can still end a word of a prompt
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // REDUCED,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(96, 192),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="sample",
        timestep_spacing="trailing",
        steps_offset=1,
        rescale_betas_zero_snr=True,
    )


def pixels(images: np.ndarray) -> Tensor:
    """(k, side, side, 3) uint8 → (k, 3, side, side) in [−1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def principal_latents(images: np.ndarray) -> Callable[[Tensor], Tensor]:
    """The linear code that the autoencoder starts from: principal components of 8 × 8 patches, (k, 3, 64, 64) → (k,
    LATENT_CHANNELS, 8, 8).

    Each component is divided by the square root of its deviation, which evens them out by half, and all by their common
    deviation.
    """
    patches = torch.nn.functional.pixel_unshuffle(pixels(images), REDUCED).permute(0, 2, 3, 1).flatten(0, 2)
    mean = patches.mean(0)
    _, deviations, components = torch.linalg.svd(patches - mean, full_matrices=False)
    deviations = deviations[:LATENT_CHANNELS] / len(patches) ** 0.5
    basis = components[:LATENT_CHANNELS].T / deviations.sqrt() / deviations.mean().sqrt()

    def code(x: Tensor) -> Tensor:
        patches = torch.nn.functional.pixel_unshuffle(x, REDUCED).permute(0, 2, 3, 1)
        return ((patches - mean) @ basis).permute(0, 3, 1, 2)

    return code


def train_vae(
    images: np.ndarray,
    folder: Path,
    settings: BaseSettings,
    *,
    start: Path | None = None,
    reporter: Reporter = SILENT,
) -> AutoencoderKL:
    """The autoencoder, by errors of pixels and of their differences to the neighbours, and a little KL divergence.

    An autoencoder with so narrow a middle hardly starts to learn by itself. So in the first steps its halves learn
    apart: the encoder to write the principal components of patches, the decoder to read them. One that goes on from the
    pipeline folder `start` needs no such help.
    """
    torch.manual_seed(settings.seed)
    vae = AutoencoderKL.from_pretrained(start, subfolder="vae", torch_dtype=torch.float32) if start else make_vae()
    guided_steps = 0 if start else settings.vae_guided_steps
    code = principal_latents(images[:1000])

    def distance(decoded: Tensor, x: Tensor) -> Tensor:
        error = decoded - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.5 * edges

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(images), (settings.vae_batch,), generator=generator)
        x = pixels(images[index.numpy()])
        posterior = vae.encode(x).latent_dist
        divergence = settings.kl_weight * 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        if step < guided_steps:
            target = code(x)
            noise = 0.1 * torch.randn(target.shape, generator=generator)
            return (
                (posterior.mean - target).square().mean() + distance(vae.decode(target + noise).sample, x) + divergence
            )
        return distance(vae.decode(posterior.sample(generator)).sample, x) + divergence

    fit(
        folder,
        vae,
        loss_of,
        steps=settings.vae_steps,
        rate=settings.vae_rate,
        seed=settings.seed,
        reporter=reporter,
    )
    with torch.no_grad():
        sample = vae.encode(pixels(images[:512])).latent_dist.mean
        vae.register_to_config(scaling_factor=float(1 / sample.std()))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """Scaled latents (k, c, h, w) of pictures, the means of their distributions."""
    return torch.cat(
        [
            vae.encode(pixels(part)).latent_dist.mean * vae.config.scaling_factor
            for part in np.array_split(images, max(1, len(images) // 64))
        ]
    )


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures (k, 3, side, side) in [−1, 1] from scaled latents."""
    parts = (latents / vae.config.scaling_factor).split(64)
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in parts])


def diffusion_loss(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    text: Tensor,
    *,
    noise: Tensor,
    timesteps: Tensor,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Squared error (k,) of each example's prediction, for schedulers that predict noise, velocity or the clean sample.

    The error of a clean sample is divided by the noise's variance, floored at LEAST_SIGMA²: so weighted it equals the
    error of the velocity.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = unet(noisy, timesteps, text, cross_attention_kwargs=cross_attention_kwargs).sample
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = latents
    error = (prediction - target).square().mean((1, 2, 3))
    if kind == "sample":
        error = error / (1 - scheduler.alphas_cumprod[timesteps]).clamp_min(LEAST_SIGMA**2)
    return error


def train_diffusion(
    latents: Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    settings: BaseSettings,
    start: Path | None = None,
    reporter: Reporter = SILENT,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The U-Net and its text encoder, together, on scaled latents; from nothing, or from the weights in the pipeline
    folder `start`.
    """
    torch.manual_seed(settings.seed)
    scheduler = make_scheduler()
    if start:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(start, subfolder="text_encoder", dtype=torch.float32)
    else:
        unet, text = make_unet(), make_text_encoder(tokenizer)
    both = nn.ModuleDict({"unet": unet, "text": text})
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty = tokenizer([""], padding="max_length", truncation=True, return_tensors="pt").input_ids[0]

    def loss_of(generator: torch.Generator, step: int) -> Tensor:
        index = torch.randint(len(latents), (settings.batch,), generator=generator)
        ids = tokens[index].clone()
        ids[torch.rand(settings.batch, generator=generator) < CAPTION_DROPOUT] = empty
        x = latents[index]
        noise = torch.randn(x.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (settings.batch,), generator=generator)
        return diffusion_loss(
            both["unet"], scheduler, x, both["text"](ids).last_hidden_state, noise=noise, timesteps=timesteps
        ).mean()

    fit(folder, both, loss_of, steps=settings.steps, rate=settings.rate, seed=settings.seed, reporter=reporter)
    return both["unet"], both["text"]


def assemble(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, make_scheduler(), None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def train_base(
    out: Path,
    scorer_out: Path,
    work: Path,
    drawings: Path,
    *,
    n_pictures: int,
    workers: int,
    n_threads: int,
    settings: BaseSettings | None = None,
    scorer_settings: ScorerSettings | None = None,
    start: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, float]:
    """The whole way from drawings to the two model folders, in half precision; returns the scorer's retrieval accuracy
    on the last thousand pictures.

    Everything half-done lies in `work`; the same call goes on from there, also after Stopped. With `start`, the
    pipeline folder of an earlier base, its weights are trained further. A scorer that is already there is kept: scores
    compare only under one.
    """
    settings, scorer_settings = settings or BaseSettings(), scorer_settings or ScorerSettings()
    with threads(n_threads):
        seeds, drawing = range(n_pictures), reporter.part(0.0, 0.05, "Pictures: ")
        shown, titles = draw_once(work, "any", any_picture, drawings, seeds=seeds, workers=workers, reporter=drawing)
        n_train = len(titles) - min(1000, len(titles) // 10)
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer") if start else make_tokenizer(titles)
        if not (scorer_out / "config.json").is_file():
            clip = train_scorer(
                shown[:n_train],
                titles[:n_train],
                tokenizer,
                work / "clip_run",
                settings=scorer_settings,
                reporter=reporter.part(0.05, 0.25, "Scorer: "),
            )
            make_processor(tokenizer).save_pretrained(scorer_out)
            shutil.copy(work / "clip_run" / "curve.csv", scorer_out / "curve.csv")
            clip.half().save_pretrained(scorer_out)
        measured = retrieval(Scorer(scorer_out), [Image.fromarray(x) for x in shown[n_train:]], titles[n_train:])
        drawing = reporter.part(0.25, 0.3, "Pictures: ")
        images, captions = draw_once(
            work, "familiar", familiar_picture, drawings, seeds=seeds, workers=workers, reporter=drawing
        )
        vae = train_vae(
            np.concatenate([shown[:n_train], images]),
            work / "vae_run",
            settings,
            start=start,
            reporter=reporter.part(0.3, 0.6, "Autoencoder: "),
        )
        unet, text = train_diffusion(
            encode(vae, images),
            captions,
            tokenizer,
            work / "unet_run",
            settings=settings,
            start=start,
            reporter=reporter.part(0.6, 1.0, "Diffusion: "),
        )
    publish(assemble(vae, unet, text, tokenizer), work, out)
    return measured


def publish(pipeline: StableDiffusionPipeline, work: Path, out: Path) -> None:
    """The pipeline in half precision, with the curves of its training and a sheet of samples."""
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    for path in out.glob("*/config.json"):  # a model that was opened from a folder remembers where that lay
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (out / "curves").mkdir(exist_ok=True)
    shutil.copy(work / "vae_run" / "curve.csv", out / "curves" / "autoencoder.csv")
    shutil.copy(work / "unet_run" / "curve.csv", out / "curves" / "diffusion.csv")
    painter = Painter(out, cache=work / "samples")
    columns = [painter.draw(None, SAMPLE_PROMPTS, Sampling(seed=seed, steps=10, guidance=3.0)) for seed in range(4)]
    rows = list(zip(*columns, strict=True))
    contact_sheet(rows, [f"seed {seed}" for seed in range(4)], SAMPLE_PROMPTS, cell=128).save(
        out / "samples.jpg", quality=92, subsampling=0, optimize=True
    )


def draw_once(
    work: Path, name: str, make: PictureMaker, drawings: Path, *, seeds: range, workers: int, reporter: Reporter
) -> tuple[np.ndarray, list[str]]:
    """Pictures and captions, drawn now or found in the work folder."""
    if not (work / f"{name}.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        images, captions = draw_many(make, drawings, seeds, workers, reporter=reporter)
        np.save(work / f"{name}.npy", images)
        (work / f"{name}.json").write_text(json.dumps(captions))
    return np.load(work / f"{name}.npy", mmap_mode="r"), json.loads((work / f"{name}.json").read_text())
