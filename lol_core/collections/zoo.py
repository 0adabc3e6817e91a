"""The names under which a folder of LoRAs was known before sources."""

from lol_core.collections.folder import Zoo
from lol_core.collections.names import short_name
from lol_core.collections.runs import training_runs
from lol_core.collections.splits import split_ids

__all__ = ["Zoo", "short_name", "split_ids", "training_runs"]
