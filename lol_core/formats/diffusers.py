"""diffusers files, new (`unet.….lora_A.weight`) and old (`….processor.to_q_lora.down.weight`), and tools that write the
same keys (ai-toolkit).
"""

from __future__ import annotations

import re

from lol_core.formats.peft import notes, prepare
from lol_core.formats.reading import Dialect, Spelling

COMPONENTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoders"),
    *("diffusion_model", "prior"),
)
_OLD = re.compile(r"\.(\w+_lora|lora|lora_linear_layer)\.(down|up)\.weight$")
_NEW = re.compile(rf"^({'|'.join(COMPONENTS)})\.(?!h\.\d).+\.(lora_[AB]|lora_(down|up)\.weight)")


def matches(keys: list[str]) -> bool:
    return any(_OLD.search(key) or _NEW.match(key) for key in keys)


DIALECT = Dialect(
    name="diffusers",
    spellings=(
        Spelling(
            "LoRA",
            "unet.MODULE.lora_A.weight",
            "an `.alpha` beside; the header's lora_adapter_metadata, by component; else 1, noted",
            "diffusers",
        ),
        Spelling(
            "LoRA of its first attention processors",
            "unet.MODULE.processor.to_q_lora.down.weight",
            "1, noted",
            "diffusers before 0.20",
        ),
        Spelling(
            "LoRA, before PEFT",
            "text_encoder.MODULE.lora_linear_layer.down.weight",
            "as above",
            "diffusers before 0.22",
        ),
        Spelling(
            "LoRA for ComfyUI",
            "diffusion_model.MODULE.lora_A.weight",
            "`.alpha` beside / r; the header's alpha; else 1, noted",
            "ai-toolkit, ComfyUI, DiffSynth-Studio",
        ),
        Spelling(
            "DoRA",
            "transformer.MODULE.lora_magnitude_vector",
            "one magnitude per output",
            "diffusers, ai-toolkit (`.magnitude`)",
        ),
    ),
    matches=matches,
    prepare=prepare,
    loader="diffusers",
    notes=notes,
)
