"""How the factors that are trained on are kept."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Storage(StrEnum):
    """The type of their numbers in the store or in memory. What is computed with them is computed in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Half the place: two to three decimal digits of a number of any size."""
    FLOAT16 = "float16"
    """Half the place: three digits, fewer below 6e-5, and nothing beyond 65,504."""

    @property
    def dtype(self) -> torch.dtype:
        import torch  # takes seconds, and a command's options need none of it

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.value]
