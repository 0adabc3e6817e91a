"""Which device computes."""

from __future__ import annotations

import torch

from lol_core.errors import ModelError


def find_device(name: str = "auto") -> torch.device:
    """The named device, or with "auto" the best there is: CUDA, then Apple's MPS, then CPU. Raises ModelError when the
    named one is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.split(":")[0], False):
        raise ModelError(
            f"There is no device {name!r} here. Available:"
            f" {', '.join(kind for kind, there in available.items() if there)}."
        )
    return torch.device(name)


def devices() -> list[str]:
    """The kinds of device to choose from here."""
    return [
        kind
        for kind, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if there
    ]
