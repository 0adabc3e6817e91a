"""One family of errors, under the name that users import it by."""

from lol_core.core.errors import (
    ChangedError,
    CheckpointError,
    DataMissingError,
    DivergedError,
    LoLError,
    LoRAFormatError,
    ModelError,
    NotLowRankError,
    SourceSilentError,
    TaskError,
    ZooError,
    needing,
)

__all__ = [
    "ChangedError",
    "CheckpointError",
    "DataMissingError",
    "DivergedError",
    "LoLError",
    "LoRAFormatError",
    "ModelError",
    "NotLowRankError",
    "SourceSilentError",
    "TaskError",
    "ZooError",
    "needing",
]
