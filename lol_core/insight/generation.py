"""Images from LoRAs through diffusers: the base with and without a LoRA, at any strength, kept on disk once drawn."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from lol_core.collections.cache import cache_folder
from lol_core.collections.describe import content_digest
from lol_core.collections.durable import replace_file
from lol_core.collections.entry import SAMPLED_BYTES
from lol_core.collections.names import user_path
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.core.making import MAKING
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError, LoRAFormatError, needing
from lol_core.formats.writing import forms_of, write

DRAWABLE = ("diffusers", "kohya")
"""Forms that diffusers loads into an image model."""
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
"""For names and prompts in a picture, those with the most letters first."""


@dataclass(frozen=True)
class Sampling:
    """How an image is drawn. guidance 1 means none; the same seed gives every prompt and every LoRA the same initial
    noise.
    """

    seed: int = 42
    steps: int = 20
    guidance: float = 1.0
    strength: float = 1.0

    def with_strength(self, strength: float) -> Sampling:
        return replace(self, strength=strength)


class Painter:
    """A text-to-image base model that draws with and without LoRAs.

    base: a diffusers folder or hub id, opened at the first image that is not in `cache` (the user's cache folder by
    default), where finished images are found again by base, LoRA file, prompt and sampling.
    """

    def __init__(self, base: str | Path, device: str = "cpu", cache: Path | None = None):
        self.base, self.device = str(base), device
        self.cache = cache or cache_folder() / "images"
        self._pipeline: Any = None
        self._worn: tuple[str, ...] = ()
        self._lock = threading.Lock()

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline. Raises DataMissingError when there is no such base."""
        if self._pipeline is None:
            with needing("images"):
                from diffusers import DiffusionPipeline

            folder = user_path(self.base)
            dtype = torch.float16 if self.device.startswith("cuda") else torch.float32
            try:
                place = folder if folder.is_dir() else DiffusionPipeline.download(self.base)  # nobody waits for it
                with MAKING:
                    pipeline = DiffusionPipeline.from_pretrained(str(place), dtype=dtype)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise DataMissingError(
                    f"{self.base}: no diffusers pipeline there ({reason}). Give a local folder or a hub id."
                ) from error
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(self.device)
        return self._pipeline

    @torch.no_grad()
    def draw(
        self,
        lora: Path | None,
        prompts: Sequence[str],
        sampling: Sampling = Sampling(),
        reporter: Reporter = SILENT,
        *,
        keep: bool = True,
    ) -> list[Image.Image]:
        """One image for each prompt, by the base alone when `lora` is None. With `keep` finished images are taken from
        and put into the cache.

        Raises Stopped, between two sampling steps, DataMissingError, and LoRAFormatError when diffusers cannot apply
        the file to this base.
        """
        paths = [self.cache / f"{self._key(lora, prompt, sampling)}.png" for prompt in prompts]
        missing = [i for i, path in enumerate(paths) if not (keep and path.is_file())]
        if missing:
            with self._lock:
                self._wear(lora, sampling.strength)
                drawn = self._sample([prompts[i] for i in missing], sampling, reporter)
            if not keep:
                return drawn
            self.cache.mkdir(parents=True, exist_ok=True)
            for i, image in zip(missing, drawn, strict=True):
                replace_file(paths[i], partial(image.save, format="PNG"), shared=True)
        return [Image.open(path).convert("RGB") for path in paths]

    def is_drawn(self, lora: Path | None, prompt: str, sampling: Sampling) -> bool:
        return (self.cache / f"{self._key(lora, prompt, sampling)}.png").is_file()

    def _sample(self, prompts: list[str], sampling: Sampling, reporter: Reporter) -> list[Image.Image]:
        def watch(
            pipeline: object, step: int, timestep: int, values: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            reporter.count("step", step + 1, sampling.steps)
            reporter.check("What was drawn is kept.")
            return values

        generators = [torch.Generator("cpu").manual_seed(sampling.seed) for _ in prompts]
        return self.pipeline(
            prompts,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=generators,
            callback_on_step_end=watch,
        ).images

    def _wear(self, lora: Path | None, strength: float) -> None:
        identity = () if lora is None else _identity(lora)
        if identity != self._worn:
            if self._worn:
                self.pipeline.unload_lora_weights()
                self._worn = ()
            if lora is not None:
                folder, name = (lora, None) if lora.is_dir() else (lora.parent, lora.name)
                pipeline = self.pipeline  # opened, where it is not
                try:
                    with MAKING:
                        pipeline.load_lora_weights(
                            str(folder), weight_name=name, adapter_name="worn", local_files_only=True
                        )
                    self.pipeline.set_adapters(["worn"])  # fails when no key of the file belongs to this model
                except (ValueError, RuntimeError, KeyError, OSError) as error:
                    self.pipeline.unload_lora_weights()
                    raise LoRAFormatError(
                        f"{lora}: does not fit {self.base} ({str(error).splitlines()[0]}). Choose the base it was"
                        " trained on."
                    ) from error
                self._worn = identity
        if self._worn:
            self.pipeline.set_adapters(["worn"], [strength])

    def _key(self, lora: Path | None, prompt: str, sampling: Sampling) -> str:
        weights = () if lora is None else _identity(lora)
        base = Path(self.base) / "model_index.json"
        stamp = f"{Path(self.base).resolve()} {base.stat().st_mtime_ns}" if base.is_file() else self.base
        strength = 0.0 if lora is None else sampling.strength
        return hashlib.sha256(
            repr((stamp, weights, prompt, sampling.seed, sampling.steps, sampling.guidance, strength)).encode()
        ).hexdigest()[:32]


def weights_file(source: Source, id: str, cache: Path | None = None) -> Path:
    """A file of a LoRA that diffusers loads: its own where the source has one, else one that is written once, in
    float32, to the cache (the user's by default).

    Raises LoRAFormatError when it cannot be read, or is no LoRA that diffusers has a form for, and ZooError when what
    it comes from does not answer.
    """
    if (there := known_weights_file(source, id, cache)) is not None:
        return there
    path = _written(source, id, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    lora = source.load(id)
    replace_file(path, lambda new: write_drawable(lora, new, id), shared=True)
    return path


def drawable_form(lora: LoRA) -> str | None:
    """The form in which an image model of diffusers loads a LoRA; None for one of a language model, say."""
    return next((form for form in forms_of(lora) if form in DRAWABLE), None)


def write_drawable(lora: LoRA, path: Path, name: str) -> None:
    """A file in float32 that diffusers loads. Raises LoRAFormatError, by this name, where it has no form for it."""
    if (form := drawable_form(lora)) is None:
        raise LoRAFormatError(f"{name}: no LoRA of a diffusion model that diffusers can load, so it draws nothing.")
    write(lora, path, form, torch.float32)


def known_weights_file(source: Source, id: str, cache: Path | None = None) -> Path | None:
    """The same without reading any weights: None where it was not written yet."""
    if (own := source.path(id)) is not None:
        return own
    return path if (path := _written(source, id, cache)).is_file() else None


def _written(source: Source, id: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "written" / f"{source.by_id[id].content.replace(' ', '-')}.safetensors"


def _identity(lora: Path) -> tuple[str, ...]:
    """What tells a LoRA from every other: the digests of its file, or of a PEFT folder's weights and settings, and of
    large files, of whose middle a digest knows nothing, the time of their last change.
    """
    files = sorted([*lora.glob("*.safetensors"), *lora.glob("adapter_config.json")]) if lora.is_dir() else [lora]
    known = []
    for file in files:
        status = file.stat()
        known.append(content_digest(file, status.st_size))
        if status.st_size > 2 * SAMPLED_BYTES:
            known.append(str(status.st_mtime_ns))
    return tuple(known)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first of FONTS that this computer has; else Pillow's own, which has few letters beyond English."""
    for name in FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """A line no wider than so many pixels: without its middle where it is."""
    kept, shown = len(text), text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
    return shown


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], prompts: Sequence[str], cell: int = 192
) -> Image.Image:
    """One picture of all: a row for each prompt, a column for each LoRA, with their names, of which the middle is left
    out where they are too long. Images are scaled to `cell` pixels.
    """
    font = _font(15)
    heads = max((title.count("\n") + 1 for title in columns), default=1) * 20 + 8
    gap, caption = 10, 24
    width = len(columns) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, heads + len(rows) * (cell + caption + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, title in enumerate(columns):
        lines = [_fitting(line, font, cell) for line in title.split("\n")]
        pen.multiline_text((gap + x * (cell + gap), 4), "\n".join(lines), "black", font)
    for y, (images, prompt) in enumerate(zip(rows, prompts, strict=True)):
        top = heads + y * (cell + caption + gap)
        pen.text((gap, top), _fitting(prompt, font, width - 2 * gap), "#555555", font)
        for x, image in enumerate(images):
            sheet.paste(image.resize((cell, cell), Image.Resampling.BICUBIC), (gap + x * (cell + gap), top + caption))
    return sheet
