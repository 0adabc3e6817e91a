"""The grounds of drawn pictures, plain or a simple scene, and what is put on them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE = 64
"""Pixels of a picture's side."""
OVERSAMPLED = 3
"""Drawings are rendered this many times larger and then reduced, which smooths their edges."""
SCENES = {
    "park": "in a park",
    "beach": "on the beach",
    "city": "in a city",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in a desert",
}

COLOURS = {
    "red": "#d94b45",
    "orange": "#ef9a3d",
    "yellow": "#f4d65a",
    "green": "#63ad62",
    "blue": "#5b93d6",
    "purple": "#9a72c4",
    "pink": "#f0a6c0",
    "brown": "#96694a",
    "white": "#f4f4f0",
    "gray": "#a3a8ad",
}


def render(svg: str, side: int) -> Image.Image:
    import resvg_py

    large = side * OVERSAMPLED
    png = resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)


def plain(colour: str, rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """A ground of about one colour."""
    base = np.array([int(COLOURS[colour][i : i + 2], 16) for i in (1, 3, 5)]) + rng.normal(0, 6, 3)
    return Image.new("RGBA", (side, side), (*(int(v) for v in base.clip(0, 255)), 255))


def scene(name: str, rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """One of SCENES, its details drawn at random."""
    horizon = rng.uniform(34, 44)

    def place(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def rect(y: float, colour: str, x: float = 0, width: float = 64, *, height: float = 64) -> str:
        return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'

    def disc(x: float, y: float, r: float, colour: str) -> str:
        return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{colour}"/>'

    if name == "park":
        trees = [(place(2, 62), place(5, 9)) for _ in range(3)]
        shapes = [rect(0, "#aee0f7"), rect(horizon, "#7cc46b")]
        for x, r in trees:
            shapes += [rect(horizon - r, "#8a5a3b", x - 1.2, 2.4, height=r), disc(x, horizon - r - 3, r, "#3f9550")]
    elif name == "beach":
        shapes = [
            rect(0, "#bfe9ff"),
            disc(place(8, 56), place(8, 16), 6, "#ffd84d"),
            rect(horizon - 10, "#3fa3cf"),
            rect(horizon, "#f2d9a0"),
        ]
    elif name == "city":
        shapes = [rect(0, "#cfd8e6")]
        for x in range(0, 64, 9):
            top = place(6, 26)
            shapes.append(rect(top, one_of(rng, ("#6d7b91", "#8793a6", "#59667a")), x, 8))
            shapes += [rect(y, "#f6e8a8", x + 2, 1.6, height=2.2) for y in np.arange(top + 3, 46, 6)]
        shapes.append(rect(50, "#4b4f57"))
    elif name == "night":
        shapes = [rect(0, "#1a2350"), rect(horizon + 6, "#16302e"), disc(place(8, 56), place(8, 16), 5, "#fff3c4")]
        shapes += [disc(place(0, 64), place(0, 36), 0.8, "#ffffff") for _ in range(14)]
    elif name == "snow":
        shapes = [rect(0, "#b7c9dd"), rect(horizon, "#fbfdff")] + [
            disc(place(0, 64), place(0, 64), 1.2, "#ffffff") for _ in range(22)
        ]
    else:
        dunes = (
            f'<path d="M0 {horizon} Q16 {horizon - place(4, 12)} 32 {horizon} T64 {horizon} V64 H0Z" fill="#d99a4e"/>'
        )
        shapes = [
            rect(0, "#ffe2ae"),
            disc(place(8, 56), place(7, 14), 6, "#fff6d0"),
            dunes,
            rect(horizon + 8, "#c9853c"),
        ]
    return render(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">{"".join(shapes)}</svg>', side)


def ground(rng: np.random.Generator, scenes: float) -> tuple[Image.Image, str]:
    """A background and the words for it; a scene with probability `scenes`, otherwise a plain colour."""
    if rng.random() < scenes:
        name = one_of(rng, tuple(SCENES))
        return scene(name, rng), SCENES[name]
    colour = one_of(rng, tuple(COLOURS))
    return plain(colour, rng), f"on {with_article(colour)} background"


def paste(
    background: Image.Image, drawing: Image.Image, centre: tuple[float, float], size: float, *, angle: float = 0.0
) -> Image.Image:
    """The drawing on the background; centre and size as fractions of the frame, angle in degrees."""
    side = background.width
    pixels = max(1, round(size * side))
    small = drawing.rotate(angle, Image.Resampling.BICUBIC).resize((pixels, pixels), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", background.size)
    layer.paste(small, (round(centre[0] * side - pixels / 2), round(centre[1] * side - pixels / 2)))
    return Image.alpha_composite(background, layer)


def one_of(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
