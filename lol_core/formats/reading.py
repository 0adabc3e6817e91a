"""How every dialect is read: names to modules, scale, factors, layers, and notes on whatever is uncertain or left out.

A dialect says in its own file how it is recognised and what is special in it. `probe` runs this same code on tensors
without data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.errors import LoRAFormatError
from lol_core.formats import factors
from lol_core.formats.alike import Pattern
from lol_core.formats.assembly import Fetch, assemble
from lol_core.formats.container import TensorFile
from lol_core.formats.grouping import Grouping, Parse, group, notes_on
from lol_core.formats.names import Role, role_of
from lol_core.formats.scale import Scales

Tensors = dict[str, Tensor]
Config = Mapping[str, Any]

PAIR_KINDS = (Kind.LINEAR, Kind.CONV, Kind.BLOCKS)
"""Kinds whose rank no trainer sets above the sides of a module."""


def _unchanged(name: str, tensors: Tensors, config: Config) -> Tensors:
    return tensors


def _no_notes(config: Config) -> list[str]:
    return []


@dataclass(frozen=True)
class Content:
    """A LoRA without what its header and configuration say of it besides the scale."""

    layers: tuple[LoRALayer, ...]
    extras: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Spelling:
    """A family of files in a dialect, for the page of dialects: what it is, a key, where its scale stands, who writes
    it.
    """

    family: str
    key: str
    scale: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way of writing LoRA files.

    spellings: what the page of dialects lists. matches: whether a file of these keys is of the dialect. parse: names,
    where the common table does not do. prepare: name, plain tensors (role → tensor) and configuration → tensors, for
    what a configuration changes in the factors. unit_scale: there is no alpha and s = 1. loader: who reads
    such files without an alpha at s = 1; where "", it is not known. alpha_is_scale: the configuration's alpha is s
    itself. notes: what a configuration says of the update.
    """

    name: str
    spellings: tuple[Spelling, ...]
    matches: Callable[[list[str]], bool]
    parse: Parse = role_of
    prepare: Callable[[str, Tensors, Config], Tensors] = _unchanged
    unit_scale: bool = False
    loader: str = ""
    alpha_is_scale: bool = False
    notes: Callable[[Config], list[str]] = _no_notes

    def read(self, file: TensorFile, fetch: Fetch, config: Config) -> LoRA:
        """The LoRA in a file; without layers when no name in it is a part of one.

        Raises LoRAFormatError when not one module can be read, with the reason of the first.
        """
        scales = Scales(file.metadata, config, self.unit_scale, self.alpha_is_scale)
        data = file.data() if fetch is file.get else None
        alike = file.structure() if fetch is file.peek or data is not None else None
        key = None if alike is None else (self.name, alike, scales.settings, repr(config))
        reading = _Reading(key, self, file, fetch, config, scales)
        content = _read_once(reading) if data is None or key is None else _read_alike(reading, data)
        return LoRA(
            content.layers,
            self.name,
            claimed_base(file.metadata, config),
            dict(config) | dict(file.metadata),
            content.extras,
            content.notes,
        )

    def read_content(self, file: TensorFile, fetch: Fetch, config: Config, scales: Scales) -> Content:
        """What of a LoRA depends on its tensors, scales and configuration alone."""
        grouping = _grouped(tuple(file.keys), self.parse).copy()
        scales.begin(grouping.modules)
        stored = {name: {slot: fetch(key) for slot, key in slots.items()} for name, slots in grouping.modules.items()}
        transposed = _vote(stored)
        layers = []
        for name, slots in stored.items():
            try:
                layers.append(self._layer(name, slots, scales, config, transposed=transposed))
            except LoRAFormatError as error:
                grouping.refused[name] = str(error).removeprefix(f"{name}: ").rstrip(".")
                del grouping.modules[name]
        if grouping.refused and not layers:
            name, why = next(iter(grouping.refused.items()))
            count = len(grouping.refused)
            raise LoRAFormatError(f"{name}: {why}." + (f" None of {count} modules can be read." if count > 1 else ""))
        _check_ranks(layers)
        notes = [*self.notes(config), *scales.notes(len(layers), self.loader), *notes_on(grouping)] if layers else []
        return Content(tuple(layers), tuple(grouping.extras), tuple(notes))

    def _layer(
        self, name: str, slots: Mapping[str, Tensor], scales: Scales, config: Config, *, transposed: bool | None
    ) -> LoRALayer:
        tensors = factors.plain(name, slots)
        scale = scales.of(name, tensors)
        tensors.pop(Role.ALPHA, None)
        tensors.pop(Role.SCALE, None)
        tensors = self.prepare(name, factors.turned(name, tensors, transposed), config)
        tensors = factors.oriented_magnitude(factors.multiplied(name, tensors))
        divisor = tensors.pop(Role.RANK, None)
        made, rank = assemble(name, tensors)
        if divisor is not None:
            rank = int(divisor)
        elif made.kind in (Kind.HADAMARD, Kind.KRONECKER) and scale.rank and scale.rank >= 1:
            rank = int(scale.rank)
        if made.kind in PAIR_KINDS:
            n, m, columns = made.pair_shape
            if columns > max(n, m):
                raise LoRAFormatError(
                    f"{name}: rank {columns} of a {n} × {m} module. A rank above both dimensions means transposed"
                    " factors, or no LoRA."
                )
        return LoRALayer(name, made, scale.over(rank), scale.alpha if rank else None)


@dataclass(frozen=True)
class _Reading:
    """A reading, known again by its key: headers of collections repeat, all but their metadata. Without a key it is
    like no other.
    """

    key: Hashable
    dialect: Dialect = field(compare=False)
    file: TensorFile = field(compare=False)
    fetch: Fetch = field(compare=False)
    config: Config = field(compare=False)
    scales: Scales = field(compare=False)


@lru_cache(maxsize=64)
def _grouped(keys: tuple[str, ...], parse: Parse) -> Grouping:
    return group(keys, parse)


@lru_cache(maxsize=64)
def _known(reading: _Reading) -> Content:
    return reading.dialect.read_content(reading.file, reading.fetch, reading.config, reading.scales)


def _read_once(reading: _Reading) -> Content:
    return (_known.__wrapped__ if reading.key is None else _known)(reading)


@lru_cache(maxsize=64)
def _seen(key: Hashable) -> list[tuple[Content, Pattern | None]]:
    """What the first reading with weights of that key has told, once there was one: the content, without its modules,
    and how to read these.
    """
    return []


def _read_alike(reading: _Reading, data: np.ndarray) -> Content:
    """The content, with weights, of a file of these bytes."""
    for content, pattern in (seen := _seen(reading.key)):
        if pattern is not None:
            return replace(content, layers=pattern.layers(data))
    content = _known.__wrapped__(reading)
    if not seen:
        seen.append((replace(content, layers=()), Pattern.of(content.layers, data)))
    return content


def _vote(stored: Mapping[str, Mapping[str, Tensor]]) -> bool | None:
    """Whether the factors of a file are stored (in, r), (r, out), as its modules that multiply in one way only say."""
    votes = set()
    for slots in stored.values():
        down = slots.get(Role.DOWN, slots.get(Role.TRANSPOSED_DOWN))
        up = slots.get(Role.UP, slots.get(Role.TRANSPOSED_UP))
        if down is not None and up is not None and len(ways := factors.orientations(down, up)) == 1:
            votes.add(ways[0])
    return votes.pop() if len(votes) == 1 else None


def _check_ranks(layers: list[LoRALayer]) -> None:
    """Raises LoRAFormatError when most modules have a rank above their smaller side: nobody trains that."""
    pairs = [(layer.name, *layer.parametrisation.pair_shape) for layer in layers if layer.kind in PAIR_KINDS]
    above = [(name, n, m, rank) for name, n, m, rank in pairs if rank > min(n, m)]
    if 2 * len(above) > len(pairs):
        name, n, m, rank = above[0]
        raise LoRAFormatError(
            f"{len(above)} of {len(pairs)} modules have a rank above their smaller side, such as {name} with rank"
            f" {rank} of {n} × {m}: transposed factors, or matrices that are no LoRA."
        )


def claimed_base(metadata: Mapping[str, Any], config: Config) -> str | None:
    """The base model that the header or the configuration names: kohya's keys, modelspec's, PEFT's, MLX's."""
    header = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "base_model")
    for source, keys in ((metadata, header), (config, ("base_model_name_or_path", "model", "model_name"))):
        for key in keys:
            if source.get(key) and source[key] != "None":
                return str(source[key])
    return None
