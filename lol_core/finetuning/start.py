"""Where the A of a zoo's LoRAs starts: each at its own draw, or all at one."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch

COMMON_SEED = 0
"""No LoRA's own number."""


class Start(StrEnum):
    OWN = "own"
    """Drawn from the LoRA's number, as PEFT does it."""
    COMMON = "common"
    """One draw for all LoRAs of the zoo."""
    FROZEN = "frozen"
    """One draw for all, which is not trained: ΔW = B A of LoRAs that differ in B alone (LoRA-FA, arXiv 2308.03303)."""

    def seed(self, number: int) -> int:
        return number if self is Start.OWN else COMMON_SEED

    def settle(self, model: Any) -> None:
        """Give a fresh PEFT model this start of A. Chance goes on as if it were the model's own."""
        if self is Start.OWN:
            return
        from peft.tuners.lora import LoraLayer

        with torch.random.fork_rng():
            torch.manual_seed(COMMON_SEED)
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    module.reset_lora_parameters("default", init_lora_weights=True)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(self is not Start.FROZEN)
