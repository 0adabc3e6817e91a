"""Errors in what users register, such as models and tasks: told with the method, the file and the line."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import wraps
from traceback import extract_tb
from typing import Any

import torch

from lol_core.errors import LoLError


def tell_errors(kind: type, names: Iterable[str], title: str, told_as: type[LoLError]) -> None:
    """Let errors of those methods of a class that are not of this package be told, as errors of the type `told_as`.
    title: what the class is called in them.
    """
    for name in names:
        owner = next(base for base in kind.__mro__ if name in vars(base))
        found = vars(owner)[name]
        method = found.__func__ if isinstance(found, classmethod) else found
        if owner.__module__.startswith(("lol_core.", "torch.")) or not inspect.isfunction(method):
            continue
        told = _telling(method, f"{title}: `{name}`", told_as)
        setattr(kind, name, classmethod(told) if isinstance(found, classmethod) else told)


def _telling(method: Any, what: str, told_as: type[LoLError]) -> Any:
    @wraps(method)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except (LoLError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            file = method.__code__.co_filename
            within = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == file]
            line = within[-1] if within else method.__code__.co_firstlineno
            reason = f"{type(error).__name__}: {error}"
            raise told_as(f"{what} ended in an error at {file}, line {line} ({reason}).") from error

    return told
