"""Which LoRAs of a collection a model has seen: known by their content, never by the collection's name or place."""

from __future__ import annotations

from lol_core.collections.source import Source
from lol_core.learning.checkpoint import Checkpoint


def parts_here(checkpoint: Checkpoint, source: Source) -> dict[str, str]:
    """id → the part of the split ("train", "validation", "test") that this LoRA took; without those that took none.

    In the collection that the model was trained on (by fingerprint), by id. In one that shares files with it, or that
    has changed since, those of the same id and content; none for a checkpoint of before digests were kept.
    """
    parts = {id: part for part, ids in checkpoint.split.items() for id in ids if id in source.by_id}
    if source.fingerprint == checkpoint.fingerprint:
        return parts
    return {id: part for id, part in parts.items() if checkpoint.digests.get(id) == source.by_id[id].digest}
