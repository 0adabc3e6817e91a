"""diffusers files, new (`unet.….lora_A.weight`) and old (`….processor.to_q_lora.down.weight`), and tools that write the
same keys (ai-toolkit).
"""

from __future__ import annotations

import re

from lol_core.formats.peft import notes, prepare
from lol_core.formats.reading import Dialect

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
    example="unet.MODULE.lora_A.weight",
    scale="alpha/r of the header's lora_adapter_metadata, by component, or an `.alpha` beside; else 1",
    source="diffusers, ai-toolkit, OneTrainer",
    matches=matches,
    prepare=prepare,
    notes=notes,
)
