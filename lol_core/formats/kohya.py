"""kohya and LyCORIS files: LoRA, LoCon (with and without Tucker core), LoHa, LoKr, DoRA, and every tool that writes
`lora_down`, `lora_up` and `alpha`.

Flattened module names cannot be undone with certainty, so the flattened name is the module's name.
"""

from __future__ import annotations

import re

from lol_core.formats.reading import Dialect, Spelling

_FLAT = re.compile(r"^(?:\w*_)?(?:lora|lycoris)_\w+?[._](?:lora_|alpha$|dora_scale$|hada_|lokr_)")
_DOWN = re.compile(r"[._]lora_(?:down|mid|up)(?:\.[^.]+)?\.weight$")


def matches(keys: list[str]) -> bool:
    return any(_FLAT.match(key) or _DOWN.search(key) for key in keys)


DIALECT = Dialect(
    name="kohya/LyCORIS",
    spellings=(
        Spelling(
            "LoRA, LoCon",
            "lora_unet_MODULE.lora_down.weight",
            "`.alpha` beside / r; else the header's ss_network_alpha; else 1, noted; alpha 0: 1, noted",
            "sd-scripts, musubi-tuner, LyCORIS, OneTrainer",
        ),
        Spelling("LoCon with a core", "lora_unet_MODULE.lora_mid.weight", "as LoRA", "LyCORIS (use_tucker)"),
        Spelling("LoHa", "lora_unet_MODULE.hada_w1_a", "`.alpha` beside / r", "LyCORIS"),
        Spelling(
            "LoKr",
            "lora_unet_MODULE.lokr_w1",
            "`.alpha` beside / r of the factorised part; 1 where both are whole",
            "LyCORIS, ai-toolkit",
        ),
        Spelling(
            "DoRA", "lora_unet_MODULE.dora_scale", "the magnitude's axis is that of its shape", "LyCORIS, OneTrainer"
        ),
        Spelling(
            "fused projections in blocks",
            "MODULE.lora_up.blocks.0.weight",
            "`.alpha_scale` beside, itself",
            "LongCat-Video",
        ),
    ),
    loader="kohya's trainer",
    matches=matches,
)
