"""Learning on LoRAs: read LoRA files of every dialect, and learn from their weights with models that respect their
symmetry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lol_core.collections.zoo import Zoo
    from lol_core.core.errors import LoLError
    from lol_core.core.lora import LoRA, LoRALayer
    from lol_core.formats import probe, read
    from lol_core.learning.checkpoint import Checkpoint
    from lol_core.learning.config import TrainingConfig

__version__ = "0.1.0"
_HOMES = {
    "Checkpoint": "lol_core.learning.checkpoint",
    "LoLError": "lol_core.core.errors",
    "LoRA": "lol_core.core.lora",
    "LoRALayer": "lol_core.core.lora",
    "TrainingConfig": "lol_core.learning.config",
    "Zoo": "lol_core.collections.zoo",
    "probe": "lol_core.formats",
    "read": "lol_core.formats",
}

__all__ = ["Checkpoint", "LoLError", "LoRA", "LoRALayer", "TrainingConfig", "Zoo", "probe", "read"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: `import lol_core` alone costs nothing."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
