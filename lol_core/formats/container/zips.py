"""Zip archives, which both NumPy and PyTorch write: their members as declared, before anything is unpacked."""

from __future__ import annotations

import zipfile
from collections import Counter
from typing import BinaryIO

from lol_core.errors import LoRAFormatError

HARMLESS_BYTES = 256 * 2**20
"""An archive that unpacks to no more than this is unpacked whatever its ratio."""
RATIO = 50
"""Trained weights hardly compress; an archive of zeros, such as a LoRA never trained, does up to 1,000 times."""


def members(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    """The members of an archive of `size` bytes. Raises LoRAFormatError when it is damaged, or would unpack to far more
    than it is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise LoRAFormatError(
            f"A zip archive (as .npz and PyTorch files are) that cannot be opened ({error}): damaged or cut off."
            " Download it again."
        ) from error
    declared = sum(info.file_size for info in infos)
    if declared > max(HARMLESS_BYTES, RATIO * size):
        raise LoRAFormatError(
            f"An archive of {size:,} bytes that declares {declared:,} bytes of content: no weights compress so far. It"
            " was not unpacked."
        )
    if twins := [name for name, count in Counter(info.filename for info in infos).items() if count > 1]:
        raise LoRAFormatError(f"The archive holds {twins[0]!r} twice, so it is not clear which is meant.")
    return infos
