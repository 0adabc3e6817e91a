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


class ChangedError(LoRAFormatError):
    """A file that is no longer the one that a collection knows."""


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


class DivergedError(ModelError):
    """A training whose loss is no longer a number."""


class CheckpointError(LoLError):
    """A checkpoint folder that cannot be read, or that another version wrote."""


class DataMissingError(LoLError):
    """Weights or data that a computation needs are not there."""


EXTRAS = {
    **dict.fromkeys(("huggingface_hub", "fsspec"), "hub"),
    **dict.fromkeys(("streamlit", "plotly", "kaleido", "umap"), "app"),
    **dict.fromkeys(("ray", "faiss"), "cluster"),
}
"""Package → the extra that brings it; the rest is of what a block says that it needs."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Imports of packages that not everyone has installed. Raises DataMissingError naming the extra to install where
    one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("lol_core", "ui"):
            raise
        raise DataMissingError(
            f"The package {error.name} is not installed. Install it with:"
            f" pip install 'lol-explorer-core[{EXTRAS.get(package, extra)}]'."
        ) from error
