"""cloneofsimo's files: `unet:0:down` with ranks in the header, or a pickled list of alternating up and down factors. No
alpha: the scale is 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError
from lol_core.formats.assembly import Fetch
from lol_core.formats.container import TensorFile
from lol_core.formats.names import Part, Role
from lol_core.formats.reading import Config, Dialect, Spelling

_KEY = re.compile(r"^(?P<module>(?:unet|text_encoder):\d+):(?P<role>up|down)$")
_PLACE = re.compile(r"^\d+$", re.ASCII)


def is_list(keys: list[str]) -> bool:
    """Whether the tensors have no names but their places."""
    return bool(keys) and keys == [str(i) for i in range(len(keys))]


def matches(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys) or is_list(keys)


def parse(key: str) -> Part | None:
    if match := _KEY.match(key):
        return Part(match["module"], match["module"], Role(match["role"]))
    if _PLACE.match(key):
        place, is_down = divmod(int(key), 2)
        return Part(key, f"unet:{place}", Role.DOWN if is_down else Role.UP)
    return None


def notes(config: Config) -> list[str]:
    return ["Modules are numbered, not named, in this dialect."]


@dataclass(frozen=True, kw_only=True)
class _Numbered(Dialect):
    def read(self, file: TensorFile, fetch: Fetch, config: Config) -> LoRA:
        if not is_list(file.keys):
            return super().read(file, fetch, config)
        if len(file.keys) % 2 or any(len(file.shapes[key]) not in (2, 4) for key in file.keys):
            raise LoRAFormatError(f"A list of {len(file.keys)} tensors; expected pairs of an up and a down matrix.")
        lora = super().read(file, fetch, config)
        if all(layer.rank >= min(layer.n, layer.m) for layer in lora.layers):
            raise LoRAFormatError(
                f"A list of {len(file.keys)} matrices whose products have no low rank (e.g. {lora.layers[0].rank} of"
                f" {lora.layers[0].n} × {lora.layers[0].m}): no LoRA."
            )
        if "text_encoder" not in file.path.name:
            return lora
        return replace(lora, layers=tuple(replace(y, name=y.name.replace("unet", "text_encoder")) for y in lora.layers))


DIALECT = _Numbered(
    name="cloneofsimo",
    spellings=(Spelling("LoRA, numbered", "unet:3:down", "1", "cloneofsimo/lora; its `.pt` are lists without names"),),
    matches=matches,
    parse=parse,
    unit_scale=True,
    notes=notes,
)
