"""Learning on LoRAs: read LoRA files of every dialect, and learn from their weights with models that respect their symmetry."""

from lol_core.checkpoint import Checkpoint, TrainingConfig
from lol_core.errors import LoLError
from lol_core.formats import probe, read
from lol_core.lora import LoRA, LoRALayer
from lol_core.zoo import Zoo

__all__ = ["Checkpoint", "LoLError", "LoRA", "LoRALayer", "TrainingConfig", "Zoo", "probe", "read"]
