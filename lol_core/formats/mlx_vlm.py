"""mlx-vlm's files: `….A` (in, r) and `….B` (r, out), and in the configuration an alpha that is the scale itself."""

from __future__ import annotations

from lol_core.formats import mlx
from lol_core.formats.names import Part, Role, bare
from lol_core.formats.reading import Dialect, Spelling

_ROLES = {".A": Role.TRANSPOSED_DOWN, ".B": Role.TRANSPOSED_UP}


def matches(keys: list[str]) -> bool:
    return bool(keys) and all(key[-2:] in _ROLES for key in keys)


def parse(key: str) -> Part | None:
    role = _ROLES.get(key[-2:])
    return Part(key[:-2], bare(key[:-2]), role) if role else None


DIALECT = Dialect(
    name="mlx-vlm",
    spellings=(Spelling("LoRA, transposed", "MODULE.A", "alpha of adapter_config.json, itself", "mlx-vlm"),),
    matches=matches,
    parse=parse,
    prepare=mlx.prepare,
    alpha_is_scale=True,
)
