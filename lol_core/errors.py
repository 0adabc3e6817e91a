"""One family of errors, under the name that users import it by."""

from lol_core.core.errors import (
    CheckpointError,
    DataMissingError,
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
    "CheckpointError",
    "DataMissingError",
    "LoLError",
    "LoRAFormatError",
    "ModelError",
    "NotLowRankError",
    "SourceSilentError",
    "TaskError",
    "ZooError",
    "needing",
]
