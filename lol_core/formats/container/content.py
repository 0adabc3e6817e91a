"""What a file is by its first bytes, whatever its name: one of the containers, or something saved in its place."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import orjson

from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats.container.safetensors import MAX_HEADER_BYTES

HEAD = 2**17
"""Bytes read from the start of a file: they tell what it is, and hold the header of most."""
SHOWN = 4096
"""How many of them are looked at as text."""


class Container(StrEnum):
    SAFETENSORS = "safetensors"
    ZIP = "zip"
    PICKLE = "pickle"
    GGUF = "GGUF"


OTHERS = (
    (b"\x93NUMPY", "a single NumPy array"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture or a sound"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (
        b"algg",
        "an adapter in the form that llama.cpp had before GGUF; convert the original with convert_lora_to_gguf.py",
    ),
    (b"tjgg", "a model in the form that llama.cpp had before GGUF"),
    (b"lmgg", "a model in the form that llama.cpp had before GGUF"),
)
_MARKUP = re.compile(r"\s*<(?:!doctype|html|head|body|script|!--|\?xml|error)", re.IGNORECASE)
_TITLE = re.compile(r"<(?:title|message)>(.*?)</", re.IGNORECASE | re.DOTALL)
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x8a\x0a")
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MESSAGES = ("message", "error", "detail", "error_description", "title")


def container_of(head: bytes, size: int) -> Container | None:
    """The container that a file of `size` bytes beginning with `head` is, None when its bytes do not say.

    Raises LoRAFormatError naming what it is when it is none, NotLowRankError when it is sound but of another kind.
    """
    if head.startswith(b"version https://git-lfs"):
        raise LoRAFormatError(
            "A Git-LFS pointer, not the weights themselves. Run `git lfs pull` in its repository to fetch them."
        )
    if min(size, len(head)) < 8:
        raise LoRAFormatError(f"The file has {size} bytes: too short to hold any tensor. Download it again.")
    if head.startswith(b"GGUF") or head[4:8] == b"GGUF":
        return Container.GGUF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Container.ZIP
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return Container.SAFETENSORS
    if not any(head[:SHOWN]):
        raise LoRAFormatError(
            f"The file begins with {len(head[:SHOWN]):,} zero bytes: room that a download reserved and never filled."
            " Download it again."
        )
    for mark, what in OTHERS:
        if head.startswith(mark):
            raise NotLowRankError(f"No weights but {what}.")
    if head[257:262] == b"ustar" and not head.startswith(_PICKLES):
        raise NotLowRankError("No weights but a tar archive; unpack it.")
    if head.startswith(_PICKLES):
        return Container.PICKLE
    if (text := _text(head[:SHOWN])) is not None:
        raise LoRAFormatError(_describe(text))
    return None


def _text(head: bytes) -> str | None:
    """The text that a file begins with, None when it is none. The last letter may be cut in two."""
    for encoding in ("utf-16",) if head.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig",):
        for cut in range(4):
            try:
                text = head[: len(head) - cut].decode(encoding)
            except UnicodeDecodeError:
                continue
            return None if _NO_TEXT.search(text) else text
    return None


def _describe(text: str) -> str:
    again = "Download the file again, logged in if its page asks for it."
    if _MARKUP.match(text):
        kind = (
            "A web page (HTML)" if re.search(r"<(!doctype html|html|head|body)", text, re.IGNORECASE) else "An XML text"
        )
        title = _TITLE.search(text)
        titled = f" that says {' '.join(title[1].split())[:120]!r}" if title else ""
        return f"{kind}{titled}, saved under a weight's name. {again}"
    if text.lstrip().startswith(("{", "[")):
        says = _message(text)
        if says is not None:
            return f"A JSON text that says {says!r}, saved under a weight's name: an error message. {again}"
        return f"A JSON text that begins {' '.join(text.split())[:80]!r}, not weights."
    return f"A text that begins {' '.join(text.split())[:80]!r}, saved under a weight's name. {again}"


def _message(text: str) -> str | None:
    """What an error message in JSON says."""
    try:
        content: Any = orjson.loads(text)
    except ValueError:
        return None
    for _ in range(3):
        if not isinstance(content, dict):
            break
        content = next((content[key] for key in _MESSAGES if content.get(key)), None)
    return " ".join(content.split())[:160] if isinstance(content, str) else None
