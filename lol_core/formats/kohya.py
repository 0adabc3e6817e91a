"""kohya and LyCORIS files: LoRA, LoCon (with and without Tucker core), LoHa, LoKr, DoRA, and every tool that writes
`lora_down`, `lora_up` and `alpha`.

Flattened module names cannot be undone with certainty, so the flattened name is the module's name.
"""

from __future__ import annotations

import re

from lol_core.formats.reading import Dialect

_FLAT = re.compile(r"^(?:\w*_)?(?:lora|lycoris)_\w+?[._](?:lora_|alpha$|dora_scale$|hada_|lokr_)")
_DOWN = re.compile(r"[._]lora_(?:down|mid|up)(?:\.[^.]+)?\.weight$")


def matches(keys: list[str]) -> bool:
    return any(_FLAT.match(key) or _DOWN.search(key) for key in keys)


DIALECT = Dialect(
    name="kohya/LyCORIS",
    example="lora_unet_MODULE.lora_down.weight",
    scale="alpha/r with the `.alpha` beside the factors; alpha 0 or none: 1",
    source="kohya-ss/sd-scripts, musubi-tuner, LyCORIS, OneTrainer, ComfyUI",
    matches=matches,
)
