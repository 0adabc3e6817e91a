"""A trained model as a folder that can be uploaded: its weights, description, card with a licence, and checksums."""

from __future__ import annotations

import shutil
import zipfile
from io import BytesIO
from pathlib import Path

from lol_core.collections.publishing import check_licence, written
from lol_core.errors import CheckpointError
from lol_core.learning.checkpoint import CARD, DESCRIPTION, Checkpoint, read_description, tensor_files


def publish(checkpoint: Path, out: Path, *, licence: str) -> Path:
    """Write the folder `out`, whole or not at all. licence: as the hub names it, such as "mit".

    Raises CheckpointError when the folder is no finished model, ZooError when `out` is there already or the licence is
    no name.
    """
    from huggingface_hub import ModelCard

    check_licence(licence)
    model = Checkpoint.load(checkpoint)
    if not model.finished:
        raise CheckpointError(f"{checkpoint}: its training was stopped before its end. Go on with --resume first.")
    names = [DESCRIPTION, *tensor_files(read_description(checkpoint))]

    def fill(folder: Path) -> None:
        for name in names:
            shutil.copyfile(checkpoint / name, folder / name)
        card = ModelCard((checkpoint / CARD).read_text(encoding="utf-8"))
        card.data["license"] = licence
        (folder / CARD).write_text(str(card), encoding="utf-8")

    return written(out, fill)


def packed(checkpoint: Path) -> bytes:
    """A model as a zip, to be unpacked and opened elsewhere. Raises CheckpointError when the folder holds none, or a
    link, which could bring any file along.
    """
    names = (DESCRIPTION, *tensor_files(read_description(checkpoint)), CARD)
    if linked := [name for name in names if (checkpoint / name).is_symlink()]:
        raise CheckpointError(f"{checkpoint}: {linked[0]} is a link, which is not followed. Put the file itself there.")
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.write(checkpoint / name, f"{checkpoint.name}/{name}")
    return buffer.getvalue()
