"""The tensors of nested dictionaries and lists under names, as they would stand in a file of tensors alone.

The adapter may lie under a key beside the epoch and the optimizer's state, and is looked for there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lol_core.errors import LoRAFormatError

_ASIDE = re.compile(r"optim|sched|(?:^|_)ema(?:_|$)|rng|scaler|loss|callbacks|loops", re.IGNORECASE)
"""What a training state keeps beside its weights: numbers of the same names, or an older copy of them."""
WRAPPERS = frozenset(
    "state_dict module model model_state_dict lora lora_state_dict lora_weights network net weights params adapter"
    " adapter_state_dict peft_state_dict trainable trainable_state_dict".split()
)
"""Keys that say nothing of the model they hold, and are no part of a tensor's name."""
_DEPTH = 8
_CONTAINERS = 100_000
Tree = dict[str, "Tensor | Tree"]


def named_tensors(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name → tensor, and notes of where they were found and what lies beside them. Raises LoRAFormatError where names
    are not unique, or the nesting has no end.
    """
    tree, notes = _unwrap(_tensors_in(content, (), iter(range(_CONTAINERS))))
    return dict(_named(tree, "")), notes


def _tensors_in(content: Any, above: tuple[int, ...], visits: Iterator[int]) -> Tree:
    """The tensors of nested dictionaries and lists, the positions of a list as names; what holds none is left out.

    above: the containers on the way here, none of which is entered again, for a pickle may hold itself. Raises
    LoRAFormatError when a name comes twice, or when there are more containers than `visits`.
    """
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(above) > _DEPTH:
        return {}
    if next(visits, None) is None:
        raise LoRAFormatError(f"The file nests more than {_CONTAINERS:,} dictionaries and lists; no adapter does.")
    tree: Tree = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            inner: Tensor | Tree = value.detach()
        elif id(value) in above or not (inner := _tensors_in(value, (*above, id(value)), visits)):
            continue
        if str(key) in tree:
            raise LoRAFormatError(f"The file holds {str(key)!r} twice, so it is not clear which is meant.")
        tree[str(key)] = inner
    return tree


def _unwrap(tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    """The weights of a training state, without what it keeps beside them, and notes of both."""
    way, aside = [], []
    while not any(isinstance(value, Tensor) and value.numel() > 1 for value in tree.values()):
        nested = {key: value for key, value in tree.items() if isinstance(value, dict)}
        weights = {key: value for key, value in nested.items() if not _ASIDE.search(key)} or nested
        aside += [key for key in nested if key not in weights]
        tree = {key: value for key, value in tree.items() if key in weights or isinstance(value, Tensor)}
        [(key, inner), *others] = weights.items() or [("", {})]
        if others or (len(inner) < 2 and key not in WRAPPERS) or key.isdigit():
            break
        way.append(key)
        tree = inner
    notes = [f"Its tensors lie under {'.'.join(way)!r} in the file."] if way else []
    notes += [f"What lies beside them is left out: {', '.join(aside)}."] if aside else []
    return tree, tuple(notes)


def _named(tree: Tree, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from _named(value, prefix if key in WRAPPERS else f"{prefix}{key}.")
