"""The one place where a scale is looked for: beside the factors, in the header, in the configuration.

s = alpha/r, or alpha/√r with rsLoRA. What is in a file wins over what stands beside it; what cannot be known is 1, and
a note says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from lol_core.errors import LoRAFormatError
from lol_core.formats.expressions import compiled
from lol_core.formats.names import Role

PATIENCE = 0.2
"""Seconds that a pattern of a configuration may take for one name."""

ALPHAS = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")
OPTIONS = frozenset((*ALPHAS, "r", "alpha_pattern", "rank_pattern", "use_rslora", "init_lora_weights", "peft_type"))


LARGEST = 3.4028234e38
"""The largest float32: what is above it is infinite to all that computes with it."""


@dataclass(frozen=True)
class Scale:
    """alpha and how it divides: by the rank or by `rank` where the library divides by a configured one; value: s itself
    where the file holds that.
    """

    alpha: float | None = None
    rslora: bool = False
    rank: float | None = None
    value: float | None = None

    def over(self, rank: int) -> float:
        """s for factors of a rank; 1 without alpha, and with rank 0, where no factor is a product (LyCORIS)."""
        if self.value is not None:
            return self.value
        return 1.0 if self.alpha is None or rank == 0 else self.alpha / (rank**0.5 if self.rslora else rank)


def number(value: Any) -> float | None:
    """A number from a header or a configuration, where it may be text; None when it is none. NaN and infinity pass."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


@dataclass
class Scales:
    """Finds the scale of one module after another, and remembers what has to be said about them.

    metadata: the header; config: the JSON beside the file; unit: the dialect has no alpha and its scale is 1;
    alpha_is_scale: the configuration's alpha is s itself.
    """

    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    unit: bool = False
    alpha_is_scale: bool = False
    unknown: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)
    complaints: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sources = [source for source in self._find() if any(key in source.options for key in OPTIONS)]

    def _find(self) -> Iterator[_Source]:
        """All settings there are, the nearest to the factors first."""
        for key, text in self.metadata.items():
            if key.startswith(("ss_", "sshs_", "modelspec.")):
                continue  # kohya's tags and arguments, where "alpha" may be anything
            if isinstance(text, str) and text.lstrip().startswith("{") and 'lora_alpha"' in text:
                try:
                    content = json.loads(text)
                except (ValueError, RecursionError):
                    self.complaints[f"The header's {key} is no valid JSON; what it says of alpha is unknown."] = None
                    continue
                if isinstance(content, dict):
                    yield from _by_component(f"the header's {key}", content)
        yield _Source("adapter_config.json", "", self.config)
        nested = self.config.get("config")
        if isinstance(nested, dict):  # AdapterHub
            yield _Source("adapter_config.json", "", nested)
        if isinstance(self.config.get("lora_config"), dict):
            yield _Source("adapter_config.json", "", self.config["lora_config"])
        yield from _by_component("the header", self.metadata)

    @property
    def settings(self) -> str:
        """All that `of` looks at besides a module's tensors: equal texts give equal scales."""
        return repr((self.unit, self.alpha_is_scale, self._sources, self.complaints))

    def begin(self, names: Iterable[str]) -> None:
        """Tell the names of all modules: settings of one component alone hold for all where none begins with it."""
        self._sources = [
            replace(source, component="")
            if source.only and not any(name.startswith(f"{source.component}.") for name in names)
            else source
            for source in self._sources
        ]

    def of(self, name: str, tensors: Mapping[str, Tensor]) -> Scale:
        """The scale of a module, whose tensors may hold it. Raises LoRAFormatError when it is no finite number."""
        if (tensor := tensors.get(Role.SCALE)) is not None:
            return Scale(value=_one(name, "scale", tensor))
        if (tensor := tensors.get(Role.ALPHA)) is not None:
            alpha = _one(name, "alpha", tensor)
            if alpha == 0:
                self.zero.append(name)
            return Scale(alpha or None)
        if self.unit:
            return Scale()
        settings = self.config.get("lora_parameters")
        if isinstance(settings, dict) and (scale := number(settings.get("scale"))) is not None:  # mlx-lm
            return Scale(value=_finite("scale in adapter_config.json", scale))
        for source in self._sources:
            known = source.of(name, self.complaints)
            if known is not None:
                self.sources.add(source.place)
                if known.alpha == 0:
                    self.complaints[f"alpha is 0 in {source.place}: it switches the update off."] = None
                if Role.DIAGONAL in tensors and self.config.get("peft_type") == "ADALORA":
                    return self._adalora(known)
                return Scale(value=known.alpha) if self.alpha_is_scale else known
        self.unknown.append(name)
        return Scale()

    def _adalora(self, scale: Scale) -> Scale:
        """PEFT's AdaLoRA divides alpha by the rank it began with, and by a little more (`AdaLoraLayer`, 1e-5)."""
        first = number(self.config.get("init_r"))
        if first is None or first < 1 or scale.alpha is None:
            return scale
        return Scale(value=(scale.alpha if scale.alpha > 0 else first) / (first + 1e-5))

    def notes(self, modules: int, loader: str = "") -> list[str]:
        """What is uncertain about the scales of a LoRA of so many modules. loader: see `Dialect`."""
        notes = list(self.complaints)
        if self.unit:
            notes.append("This dialect has no alpha: the scale is 1.")
        if self.unknown:
            which = "" if len(self.unknown) == modules else f" of {len(self.unknown)} of {modules} modules"
            taken = f"taken as 1, as {loader} does" if loader else "unknown and taken as 1"
            notes.append(f"No alpha{which} in the file, its header or a configuration beside it: the scale is {taken}.")
        if self.zero:
            notes.append(
                f"alpha is 0 in {len(self.zero)} modules: kohya's trainer means the rank by that, and the scale is 1;"
                " other programs switch these modules off."
            )
        if "the header" in self.sources:
            notes.append("The file holds no alpha beside its factors: the scale is alpha/r with the header's alpha.")
        return notes


@dataclass(frozen=True)
class _Source:
    """alike: the scale of all modules that it speaks of, once it is known, where no pattern tells them apart."""

    place: str
    component: str
    options: Mapping[str, Any]
    only: bool = False
    alike: list[Scale | None] = field(default_factory=list, repr=False, compare=False)

    def of(self, name: str, complaints: dict[str, None]) -> Scale | None:
        if self.component and not name.startswith(f"{self.component}."):
            return None
        if not (self.options.get("alpha_pattern") or self.options.get("rank_pattern")):
            if not self.alike:
                self.alike.append(self._of((), complaints))
            return self.alike[0]
        names = (name.removeprefix(f"{self.component}."), name) if self.component else (name, name.partition(".")[2])
        return self._of(names, complaints)

    def _of(self, names: tuple[str, ...], complaints: dict[str, None]) -> Scale | None:
        given = patterned(self.options.get("alpha_pattern"), names)
        key = "alpha_pattern"
        if given is None:
            key = next((key for key in ALPHAS if self.options.get(key) not in (None, "", "None")), "")
            given = self.options.get(key) if key else None
        if given is None:
            return None
        alpha = number(given)
        if alpha is None:
            complaints[f"{key} is {given!r} in {self.place}, which is no number: alpha is not known from there."] = None
            return None
        rank = patterned(self.options.get("rank_pattern"), names)
        rank = number(self.options.get("r") if rank is None else rank)
        _finite(f"{key} in {self.place}", alpha)
        if rank is not None:
            _finite(f"The rank in {self.place}", rank)
        return Scale(alpha, self.options.get("use_rslora") in (True, "true", "True"), rank)


def _by_component(place: str, flat: Mapping[str, Any]) -> Iterator[_Source]:
    """Settings whose keys begin with a component: `transformer.lora_alpha`; and those of none, last."""
    components: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, option = str(key).rpartition(".")
        if option in OPTIONS:
            components.setdefault(component, {})[option] = value
        elif isinstance(value, dict) and "lora_alpha" in value:
            components.setdefault(str(key), {}).update(value)
    for component in sorted(components, key=lambda name: -len(name)):
        yield _Source(place, component, components[component], only=len(components) == 1)


def patterned(patterns: Any, names: tuple[str, ...]) -> Any:
    """The value of a rank or alpha pattern: the first key k such that `(.*\\.)?(k)$` matches a name (PEFT)."""
    if not isinstance(patterns, Mapping):
        return None
    for key, value in patterns.items():
        if any(_pattern(str(key)).matches(name) for name in names):
            return value
    return None


class _Pattern:
    """A configuration's regular expression, which anyone may have written: one that takes long is given up for good."""

    def __init__(self, key: str):
        self.key = key
        self.slow = False
        try:
            self.expression = compiled(rf"(?:.*\.)?(?:{key})$")
        except ValueError as error:
            raise LoRAFormatError(
                f"The pattern {key[:80]!r} of the configuration is no regular expression ({error})."
            ) from error

    def matches(self, name: str) -> bool:
        try:
            if not self.slow:
                return self.expression.match(name, timeout=PATIENCE) is not None
        except TimeoutError:
            self.slow = True
        raise LoRAFormatError(
            f"The pattern {self.key[:80]!r} of the configuration takes more than {PATIENCE} s for a name. Simplify it."
        )


_pattern = lru_cache(maxsize=4096)(_Pattern)


def _one(name: str, what: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or tensor.is_meta or tensor.is_complex():
        raise LoRAFormatError(f"{name}: {what} has the shape {tuple(tensor.shape)}; expected one number.")
    return _finite(f"{name}: {what}", float(tensor.item()))


def _finite(what: str, value: float) -> float:
    if not abs(value) <= LARGEST:
        raise LoRAFormatError(
            f"{what} is {value} (NaN, or infinite in float32), so the scale is not finite. The fine-tune diverged."
        )
    return value
