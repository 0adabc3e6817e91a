"""What is known of one LoRA of a collection without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lol_core.core.header import ModuleHeader
from lol_core.core.lora import LoRA
from lol_core.formats import suggest_base_model


@dataclass(frozen=True)
class Entry:
    """One file of a collection as its header describes it. `path` is relative to the folder; `reason` is None when it
    was read, else why not.

    headers: its modules; alphas and scales: of each, alpha None where the file has none; digest: hash of size, head and
    tail, the identity of the content.
    """

    path: str
    size: int
    mtime: float
    digest: str
    reason: str | None = None
    dialect: str | None = None
    base_model: str | None = None
    suggested_base: str | None = None
    modules: int = 0
    ranks: tuple[int, ...] = ()
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    headers: tuple[ModuleHeader, ...] = ()
    alphas: tuple[float | None, ...] = ()
    scales: tuple[float, ...] = ()
    metadata: dict[str, Any] | None = None
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, lora: LoRA, path: str, size: int, mtime: float, digest: str) -> Entry:
        """The entry of a LoRA that could be read, with its weights or from its header alone."""
        return cls(
            path,
            size,
            mtime,
            digest,
            dialect=lora.dialect,
            base_model=lora.base_model,
            suggested_base=suggest_base_model(lora),
            modules=len(lora.layers),
            ranks=lora.ranks,
            parameters=lora.parameters,
            dtypes=lora.dtypes,
            headers=lora.headers,
            alphas=tuple(layer.alpha for layer in lora.layers),
            scales=tuple(layer.scale for layer in lora.layers),
            metadata=_plain(lora),
            extras=lora.extras,
            notes=lora.notes,
        )


def _plain(lora: LoRA) -> dict[str, Any]:
    """The metadata as JSON can hold it; NaN and other oddities become text."""
    return {
        str(key): value if isinstance(value, str | int | bool | list | dict | None) else str(value)
        for key, value in lora.metadata.items()
    }
