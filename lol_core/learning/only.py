"""Conditions on which LoRAs of a mixed collection a model is made of: "rank=4", "base=stable-diffusion-v1-5"."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lol_core.collections.columns import values
from lol_core.collections.source import Source
from lol_core.core.header import ModuleHeader
from lol_core.errors import TaskError

FACTS = ("base", "rank", "kind")
"""What LoRAs can be told apart by beside their labels: the base model that the shapes suggest, or else the one that is
named; the rank, several where modules differ ("4, 8"); LoRA, LoRA with DoRA, LoHa and the like.
"""
MOST = 12
"""Values that a message lists."""


def kind_of_module(module: ModuleHeader) -> str:
    return f"{module.kind}{' with DoRA' if module.magnitude else ''}"


def fact(zoo: Source, name: str) -> pd.Series:
    """One of FACTS, as text, of every LoRA by id."""
    if name == "rank":
        return values(zoo, "ranks")
    if name == "base":
        return values(zoo, "suggested_base").fillna(values(zoo, "base_model")).fillna("unknown")
    kinds = [kind_of_module(entry.headers[0]) if entry.headers else "none" for entry in zoo.entries]
    return pd.Series(kinds, index=zoo.ids, name=name)


def _as_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def column(zoo: Source, name: str) -> pd.Series:
    """A label, or else a fact, as text, of every LoRA by id. Raises TaskError when there is none of that name."""
    if name in zoo.labels.columns:
        return zoo.labels[name].map(_as_text, na_action="ignore").reindex(zoo.ids)
    if name in FACTS:
        return fact(zoo, name)
    known = ", ".join([*FACTS, *map(str, zoo.labels.columns)])
    raise TaskError(f"LoRAs cannot be chosen by {name!r}; by {known} they can.")


def conditions(zoo: Source) -> dict[str, int]:
    """The conditions on facts that some LoRAs meet and others do not → how many meet them."""
    counts = {name: fact(zoo, name).value_counts() for name in FACTS if name not in zoo.labels.columns}
    return {
        f"{name}={value}": int(count) for name, some in counts.items() if len(some) > 1 for value, count in some.items()
    }


def chosen(zoo: Source, only: Sequence[str]) -> list[str]:
    """The LoRAs that meet conditions of the form NAME=VALUE, in the collection's order: any of those on one name, and
    one on each name. Raises TaskError for one that is not of the form or that no LoRA meets.
    """
    if not only:
        return list(zoo.ids)
    wanted: dict[str, list[str]] = {}
    for condition in only:
        name, equals, value = condition.partition("=")
        if not equals:
            names = f"NAME is {', '.join(FACTS)} or a label"
            raise TaskError(f"{condition!r} is no condition. Write NAME=VALUE, such as rank=4; {names}.")
        wanted.setdefault(name.strip(), []).append(value.strip())
    meets = pd.Series(True, index=zoo.ids)
    for name, some in wanted.items():
        own = column(zoo, name)
        counts = own.value_counts()
        for value in some:
            if value not in counts.index:
                listed = ", ".join(f"{one} ({count:,})" for one, count in counts.head(MOST).items())
                more = ", …" if len(counts) > MOST else ""
                raise TaskError(f"No LoRA of {zoo.name} has {name}={value}. There are {listed}{more}.")
        meets &= own.isin(some)
    if not meets.any():
        raise TaskError(f"No LoRA of {zoo.name} meets all of {', '.join(only)}.")
    return meets.index[meets].tolist()
