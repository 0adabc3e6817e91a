"""From the names in a file to its modules, and what becomes of every other tensor: nothing drops out in silence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lol_core.errors import LoRAFormatError
from lol_core.formats.names import Part, Role, role_of

Parse = Callable[[str], Part | None]

PAIRS = (
    (Role.DOWN, Role.UP),
    (Role.TRANSPOSED_DOWN, Role.TRANSPOSED_UP),
    (Role.EMBEDDING_DOWN, Role.EMBEDDING_UP),
    (Role.HADA_W1_A, Role.HADA_W1_B),
    (Role.HADA_W2_A, Role.HADA_W2_B),
    (Role.HADA_W1_A, Role.HADA_W2_A),
    (Role.LOKR_W1_A, Role.LOKR_W1_B),
    (Role.LOKR_W2_A, Role.LOKR_W2_B),
)
FACTORS = frozenset(role for pair in PAIRS for role in pair) | {Role.LOKR_W1, Role.LOKR_W2}

_BASE = re.compile(
    r"^(weight|bias|in_proj_weight|in_proj_bias|qweight|qzeros|scales|g_idx|SCB|weight_format)$"
    r"|^weight\.|^(base_layer|original_module|modules_to_save|original_layer|linear|embedding|conv|parametrizations)\."
)
"""Tensors of the base model inside an adapted module."""

_BIAS = re.compile(r"^(diff_b|b_diff|bias_diff)$")
_FACTOR_WORD = re.compile(
    r"lora|hada|lokr|dora|oft_|alpha|magnitude|adapter|rank|scal|diff|lambda|expert", re.IGNORECASE
)


_EXPERT = re.compile(r"\.(?:lora_)?experts?\.\d+$")
"""A factor pair whose number stands right before it is one of several for the same module (MixLoRA)."""


@dataclass
class Grouping:
    """modules: name → slot → key in the file; refused: name → why it cannot be read; extras: all other keys; adapters:
    the names of adapters in the keys.
    """

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)

    def copy(self) -> Grouping:
        """One to which modules can be refused; what the modules hold is shared."""
        return Grouping(dict(self.modules), dict(self.refused), list(self.extras))


def group(keys: Iterable[str], parse: Parse = role_of) -> Grouping:
    """Sort tensor names into modules. A tensor inside an adapted module that nobody understands refuses that module.

    Raises LoRAFormatError when modules lack one side of their product, naming them, or when two tensors claim the same
    part.
    """
    result = Grouping()
    places: dict[str, str] = {}  # prefix in the file → module
    adapters: dict[str, set[str]] = {}
    others = []
    for key in keys:
        part = parse(key)
        if part is None or part.role == Role.APART:
            others.append(key)
            continue
        slots = result.modules.setdefault(part.module, {})
        if part.slot in slots:
            names = sorted({name or "without a name" for name in (*adapters.get(part.module, ()), part.adapter)})
            raise LoRAFormatError(
                f"Module {part.module!r} has two tensors for the part {part.role}: {slots[part.slot]!r} and {key!r}."
                f" The file holds two adapters, or several experts ({', '.join(names)}); save them one by one."
            )
        slots[part.slot] = key
        if part.role in FACTORS:
            adapters.setdefault(part.module, set()).add(part.adapter)
            places[part.prefix] = part.module
    for name, names_there in adapters.items():
        if len(names_there) > 1:
            result.modules.pop(name)
            result.refused[name] = f"its factors belong to different adapters ({', '.join(sorted(names_there))})"
    for name in [name for name in result.modules if _EXPERT.search(name)]:
        result.modules.pop(name)
        result.refused[name] = "one of several experts of a mixture of LoRAs, which a router weights"
    result.adapters = sorted({adapter for names_there in adapters.values() for adapter in names_there})
    for name, slots in list(result.modules.items()):
        if not any(Role(slot.split(".")[0].rstrip("*")) in FACTORS for slot in slots):
            others.extend(result.modules.pop(name).values())
    _unknown_siblings(result, places, others, parse)
    _halves(result)
    return result


def _unknown_siblings(result: Grouping, places: dict[str, str], others: list[str], parse: Parse) -> None:
    unknown: dict[str, list[str]] = {}
    for key in others:
        module, rest = _owner(key, places)
        own = ".loras." in key  # AdapterHub: nothing of the base model lies there
        if module and (own or _is_unknown(rest)) and parse(key) is None:
            unknown.setdefault(module, []).append(rest)
        else:
            result.extras.append(key)
    for module, rests in unknown.items():
        slots = result.modules.pop(module, None)
        if slots is None:
            continue
        result.extras += [key for key in others if _owner(key, places)[0] == module and key not in result.extras]
        result.refused[module] = _why(sorted(rests))


def _owner(key: str, places: dict[str, str]) -> tuple[str, str]:
    """The adapted module that a tensor's name lies in, and the rest of the name."""
    end = key.rfind(".")
    while end > 0:
        if key[:end] in places:
            return places[key[:end]], key[end + 1 :]
        end = key.rfind(".", 0, end)
    return "", ""


def _is_unknown(rest: str) -> bool:
    if _BASE.search(rest) or _BIAS.search(rest):
        return False
    leaf = rest.removesuffix(".weight").removesuffix(".bias")
    return ("." not in rest) or bool(_FACTOR_WORD.search(leaf))


def _why(rests: list[str]) -> str:
    listed = ", ".join(rests[:4]) + (" …" if len(rests) > 4 else "")
    why = f"beside its factors it has {listed}, which no known formula of ΔW accounts for"
    if any(re.search(r"rout|expert|^lora_[AB]_?\d", rest) for rest in rests):
        return f"a mixture of LoRAs, several factors weighted by a router: {why}"
    if any(re.search(r"absmax|zero_?point|qzero|quant|SCB", rest) for rest in rests):
        return f"factors quantised in a way that is not known: {why}"
    return why


def _halves(result: Grouping) -> None:
    halves = {}
    for module, slots in result.modules.items():
        roles = {slot.split(".")[0].rstrip("*") for slot in slots}
        missing = [str(b if a in roles else a) for a, b in PAIRS if (a in roles) != (b in roles)]
        kronecker = [role for role in roles if role.startswith("lokr_")]
        if kronecker:
            missing += [
                f"lokr_{w}" for w in ("w1", "w2") if not any(role.startswith(f"lokr_{w}") for role in kronecker)
            ]
        if missing:
            halves[module] = (sorted(roles), missing)
    if halves:
        module, (roles_there, missing) = next(iter(halves.items()))
        raise LoRAFormatError(
            f"Half a LoRA: {len(halves)} of {len(result.modules)} modules lack a factor. Module {module!r} has"
            f" {', '.join(roles_there)} but no {', '.join(missing)}."
        )


def notes_on(grouping: Grouping) -> list[str]:
    """What is left out of the LoRA, said in sentences."""
    notes = []
    if grouping.refused:
        module, why = next(iter(grouping.refused.items()))
        count = len(grouping.refused)
        notes.append(
            f"{count} of {count + len(grouping.modules)} modules cannot be read and are left out. {module}: {why}."
        )
    if len(grouping.adapters) > 1:
        names = ", ".join(name or "without a name" for name in grouping.adapters)
        notes.append(f"Its modules belong to several adapters ({names}), read here as one.")
    kinds = Counter(_leaf(key) for key in grouping.extras)
    if kinds:
        listed = ", ".join(f"{leaf} ({count})" for leaf, count in kinds.most_common(6)) + (
            " …" if len(kinds) > 6 else ""
        )
        tensors = "1 tensor is" if kinds.total() == 1 else f"{kinds.total()} tensors are"
        notes.append(f"{tensors} no part of a low-rank product and left out: {listed}, such as {grouping.extras[0]}.")
    return notes


def _leaf(key: str) -> str:
    """The telling end of a name: `diff_b`, `classifier.weight`, `lora_B.bias`."""
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1] in ("weight", "bias") else parts[-1]
