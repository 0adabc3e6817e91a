"""The command `generate`. Defaults are those of `Sampling`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lol_core.cli.console import AsJson, Device, Seed, out, print_json, progress_bar
from lol_core.errors import LoLError


def sheet_titles(columns: list[Path | None]) -> list[str]:
    """What images are called: by the files' names, numbered where two are of one name."""
    names = ["base model" if path is None else path.name if path.is_dir() else path.stem for path in columns]
    if len(set(names)) == len(names):
        return names
    return [f"{i} {name}" if i else name for i, name in enumerate(names)]


def generate(
    base: Annotated[str, typer.Option(help="The text-to-image model: a diffusers folder or hub id.")],
    *,
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    out_path: Annotated[
        Path, typer.Option("--out", help="A .png file for one sheet of all, or a folder for single images.")
    ],
    lora: Annotated[
        list[Path] | None,
        typer.Option(
            help="A LoRA file or PEFT folder; may be given several times. The base alone is drawn beside them."
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="Factor of ΔW; 0 is the base model.")] = 1.0,
    seed: Seed = 42,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 20,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 is none, Stable Diffusion likes about 7.5.")
    ] = 1.0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw images with LoRAs and without, from the same prompts and seed."""
    from lol_core.insight.generation import Painter, Sampling, contact_sheet
    from lol_core.learning.devices import find_device

    sampling = Sampling(seed, steps, guidance, strength)
    columns: list[Path | None] = [None, *(lora or [])]
    with progress_bar() as reporter:
        for given in lora or []:
            if not given.exists():
                raise LoLError(f"{given}: no such file. Give a LoRA file or a PEFT folder.")
        painter = Painter(base, str(find_device(device)))
        drawn = [
            painter.draw(path, prompt, sampling, reporter.item(i, len(columns), f"Drawing {i + 1} of {len(columns)}: "))
            for i, path in enumerate(columns)
        ]
        titles = sheet_titles(columns)
        written = []
        if out_path.suffix.lower() == ".png":
            out_path.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(list(zip(*drawn, strict=True)), titles, prompt).save(out_path)
            written.append(out_path)
        else:
            out_path.mkdir(parents=True, exist_ok=True)
            for title, images in zip(titles, drawn, strict=True):
                for i, image in enumerate(images, 1):
                    written.append(out_path / f"{title.replace(' ', '-')}-{i:02d}.png")
                    image.save(written[-1])
    if as_json:
        print_json(
            {
                "base": base,
                "loras": [str(p) for p in lora or []],
                "prompts": prompt,
                "sampling": vars(sampling),
                "written": [str(p) for p in written],
            }
        )
    else:
        count = len(columns) * len(prompt)
        out.print(f"{count} image{'s' * (count != 1)} in {out_path}", highlight=False)
