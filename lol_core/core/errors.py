"""One family of errors: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LoLError(Exception):
    """Base of every error this library raises on purpose. The message is a sentence for the person who uses the
    program.
    """


class LoRAFormatError(LoLError):
    """A file that cannot be read as a LoRA: broken, truncated, half a LoRA, or another kind of adapter."""


class NotLowRankError(LoRAFormatError):
    """A sound adapter file that holds no low-rank product (OFT, IA3, prompt tuning, …)."""


class ZooError(LoLError):
    """A collection that cannot be opened, or labels that do not fit it."""


class SourceSilentError(ZooError):
    """The place of a collection does not answer, so that nothing of it can be had at present."""


class TaskError(LoLError):
    """Labels that cannot be learnt: missing, constant, of the wrong type, or too few."""


class ModelError(LoLError):
    """A LoL model that cannot take its input: rank, geometry, memory."""


class CheckpointError(LoLError):
    """A checkpoint folder that cannot be read, or that another version wrote."""


class DataMissingError(LoLError):
    """Weights or data that a computation needs are not there."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Imports of packages that not everyone has installed. Raises DataMissingError naming the extra to install where
    one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("lol_core", "ui")):
            raise
        raise DataMissingError(
            f"The package {error.name} is not installed. Install it with: pip install 'lol-explorer[{extra}]'."
        ) from error
