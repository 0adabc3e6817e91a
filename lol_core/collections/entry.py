"""What is known of one LoRA of a collection without its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import orjson

from lol_core.collections.sidecar import NONE, Sidecar
from lol_core.core.header import ByIdentity, ModuleHeader
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.formats import suggest_base_model

SAMPLED_BYTES = 65_536
"""Of either end of a file, which a digest reads."""
LONGEST = 64
"""Characters of scales that are told as they are, not by a hash."""
Values = TypeVar("Values", bound=tuple[Any, ...])


class Details(Protocol):
    """What an entry knows that may be long; an index reads it when it is wanted."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def sidecar(self) -> Sidecar: ...


@dataclass(frozen=True, slots=True)
class KnownDetails:
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sidecar: Sidecar = NONE


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a collection as its header describes it. `reason` is None when it was read, else why not.

    path: its id, which is its path below the folder wherever that is text; digest: hash of size, head and tail, the
    identity of the content; headers: its modules, one object for all entries of the same structure; alphas and scales:
    of each module, alpha None where the file has none; place: where it lies below the folder, when that is not `path`.
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
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    place: str | None = None
    details: Details = field(default_factory=KnownDetails, compare=False, repr=False)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Header and configuration entries as found, which may be wrong or absent."""
        return self.details.metadata

    @property
    def sidecar(self) -> Sidecar:
        """What the files beside it claim; false when there are none."""
        return self.details.sidecar

    @property
    def content(self) -> str:
        """The identity of the update: that of the file, and the scales, which a configuration beside it may hold. Of a
        file that its digest only samples the time tells it from another that differs in its midst.
        """
        return content_of(self.digest, _compact(ByIdentity(self.scales)), self.size, self.mtime)

    @classmethod
    def of(
        cls,
        lora: LoRA,
        *,
        path: str,
        size: int,
        mtime: float = 0.0,
        digest: str = "",
        place: str | None = None,
        sidecar: Sidecar = NONE,
    ) -> Entry:
        """The entry of a LoRA that could be read, with its weights or from its header alone."""
        known = _summary(ByIdentity(lora.layers))
        return cls(
            path,
            size,
            mtime,
            digest,
            dialect=lora.dialect,
            base_model=lora.base_model,
            suggested_base=known.suggested_base,
            modules=len(lora.layers),
            ranks=known.ranks,
            parameters=known.parameters,
            dtypes=known.dtypes,
            headers=known.headers,
            alphas=known.alphas,
            scales=known.scales,
            extras=shared(lora.extras),
            notes=shared(lora.notes),
            place=place,
            details=KnownDetails(_plain(lora), sidecar),
        )


@dataclass(frozen=True, slots=True)
class _Summary:
    """What an entry takes from the layers."""

    suggested_base: str | None
    ranks: tuple[int, ...]
    parameters: int
    dtypes: tuple[str, ...]
    headers: tuple[ModuleHeader, ...]
    alphas: tuple[float | None, ...]
    scales: tuple[float, ...]


def _summary(layers: ByIdentity[tuple[LoRALayer, ...]]) -> _Summary:
    without_weights = all(layer.U.is_meta for layer in layers.of[:1])
    return (_summarised if without_weights else _summarised.__wrapped__)(layers)


@lru_cache(maxsize=64)
def _summarised(layers: ByIdentity[tuple[LoRALayer, ...]]) -> _Summary:
    lora = LoRA(layers.of)
    return _Summary(
        suggest_base_model(lora),
        lora.ranks,
        lora.parameters,
        lora.dtypes,
        shared(lora.headers),
        shared(tuple(layer.alpha for layer in lora.layers)),
        shared(tuple(layer.scale for layer in lora.layers)),
    )


@lru_cache(maxsize=4096)
def _first(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values


def shared(values: Values) -> Values:
    """One object for all equal tuples, so that what thousands of files share is kept once."""
    return cast(Values, _first(values))


def compact(values: tuple[float | None, ...]) -> str | None:
    """JSON of one value where all are equal, as they mostly are."""
    if not values or values.count(values[0]) == len(values):
        return orjson.dumps(values[0]).decode() if values else None
    return orjson.dumps(values).decode()


@lru_cache(maxsize=4096)
def _compact(values: ByIdentity[tuple[float, ...]]) -> str | None:
    return compact(values.of)


def content_of(digest: str, scales: str | None, size: int, mtime: float) -> str:
    """`Entry.content`, of scales as `compact` writes them."""
    mark = scales if scales is None or len(scales) <= LONGEST else hashlib.sha256(scales.encode()).hexdigest()
    return f"{digest} {mark}" if size <= 2 * SAMPLED_BYTES else f"{digest} {mark} {mtime!r}"


def _plain(lora: LoRA) -> dict[str, Any]:
    """The metadata as JSON can hold it; NaN and other oddities become text."""
    return {
        str(key): value if isinstance(value, str | int | bool | list | dict | None) else str(value)
        for key, value in lora.metadata.items()
    }
