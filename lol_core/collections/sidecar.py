"""What other programs keep beside a LoRA: `NAME.civitai.info` (Civitai Helper), `NAME.metadata.json` (Lora-Manager),
`NAME.json` (the web UI of AUTOMATIC1111) and pictures. Nothing is written.

All of it is claimed by who wrote it, and says nothing sure about the weights.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from lol_core.collections.names import printable

TEXTS = (".civitai.info", ".metadata.json", ".json")
"""In order of trust: what the first says is not replaced by the next."""
PICTURES = tuple(f"{way}{suffix}" for way in (".preview", "") for suffix in (".png", ".jpg", ".jpeg", ".webp"))
MAX_BYTES = 5_000_000
_BESIDE = (*TEXTS, *PICTURES)
_PERMISSIONS = ("allowNoCredit", "allowCommercialUse", "allowDerivatives", "allowDifferentLicense")
_BREAK, _TAG = re.compile(r"<(?:br|/p|/li|/h\d)[^>]*>"), re.compile(r"<[^>]+>")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What the files beside a LoRA claim of it. trigger_words: words that call for it in a prompt; base_model: in the
    words of who wrote it; licence: its name, or what Civitai lets people do; notes: plain text; preview: file name of
    the picture beside it; files: names of the files that say so, preview included.
    """

    title: str = ""
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    base_model: str | None = None
    licence: str | None = None
    notes: str = ""
    preview: str | None = None
    files: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    @property
    def text(self) -> str:
        """Everything in it that a search looks through."""
        words = (self.title, *self.trigger_words, *self.tags, self.base_model, self.licence, self.notes)
        return " ".join(word for word in words if word)

    def to_json(self) -> str | None:
        """As the index keeps it, None when there is nothing."""
        return orjson.dumps(asdict(self)).decode() if self else None

    @classmethod
    def from_json(cls, text: str | None) -> Sidecar:
        if text is None:
            return NONE
        values: dict[str, Any] = orjson.loads(text)
        made: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**made)


NONE = Sidecar()


def may_be_beside(name: str) -> bool:
    """Whether a file of that name bears on what is known of a LoRA in its folder."""
    return name.endswith(_BESIDE)


def beside(name: str) -> tuple[str, ...]:
    """The names that sidecars of the LoRA called `name` may have."""
    stem = name.rpartition(".")[0]
    return tuple([stem + ending for ending in _BESIDE])


def read_sidecar(
    path: Path, names: Collection[str] | None = None, read: Callable[[str], bytes] | None = None
) -> Sidecar:
    """The sidecar of a LoRA file. names: the file names of its folder where they are known; read: the content of one of
    them, where it does not lie on a disk. A file beside it that cannot be read, or says nothing of the kind, counts as
    absent.
    """
    names = set(os.listdir(path.parent)) if names is None else names
    read = read or partial(_content, path.parent)
    values: dict[str, Any] = {}
    files, preview = [], None
    for other in beside(path.name):
        if other not in names:
            continue
        if other.endswith(PICTURES):
            preview = preview or other
            continue
        claims = _READERS[next(ending for ending in TEXTS if other.endswith(ending))](_load(read, other))
        if claims := {name: value for name, value in claims.items() if value}:
            files.append(other)
            values = claims | values
    if preview:
        files.append(preview)
    return Sidecar(**values, preview=preview, files=tuple(map(printable, files))) if files else NONE


def _content(folder: Path, name: str) -> bytes:
    path = folder / name
    return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else b""


def _load(read: Callable[[str], bytes], name: str) -> Mapping[str, Any]:
    try:
        content = orjson.loads(read(name).removeprefix(b"\xef\xbb\xbf"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _civitai(version: Mapping[str, Any]) -> dict[str, Any]:
    """A model version as Civitai's interface describes it."""
    model = version.get("model")
    model = model if isinstance(model, dict) else {}
    title = " ".join(filter(None, (_text(model.get("name")), _text(version.get("name")))))
    return {
        "title": title,
        "trigger_words": _words(version.get("trainedWords")),
        "tags": _words(model.get("tags") or version.get("tags")),
        "base_model": _text(version.get("baseModel")),
        "licence": _permissions(model) or _permissions(version),
        "notes": _plain("\n".join(filter(None, (_text(model.get("description")), _text(version.get("description")))))),
    }


def _lora_manager(content: Mapping[str, Any]) -> dict[str, Any]:
    known = content.get("civitai")
    claims = _civitai(known if isinstance(known, dict) else {})
    own = {
        "title": _text(content.get("model_name")),
        "tags": _words(content.get("tags")),
        "base_model": _text(content.get("base_model")).replace("Unknown", ""),
        "notes": "\n".join(
            filter(
                None, (_text(content.get("notes")), _plain(_text(content.get("modelDescription"))) or claims["notes"])
            )
        ),
    }
    return claims | {name: value for name, value in own.items() if value}


def _web_ui(content: Mapping[str, Any]) -> dict[str, Any]:
    """The editor of the web UI. Other programs write a `NAME.json` of other content, which has none of its fields."""
    notes = [_text(content.get("description")), _text(content.get("notes"))]
    if negative := _text(content.get("negative text")):
        notes.append(f"Negative prompt: {negative}")
    return {
        "trigger_words": _words(content.get("activation text")),
        "base_model": _text(content.get("sd version")).replace("Unknown", ""),
        "notes": _plain("\n".join(filter(None, notes))),
    }


_READERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    ".civitai.info": _civitai,
    ".metadata.json": _lora_manager,
    ".json": _web_ui,
}


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _words(value: object) -> tuple[str, ...]:
    """A list of words, or text with commas between them. Civitai puts several words into one entry of its list."""
    parts = value if isinstance(value, list) else [value]
    words = [word.strip() for part in parts if isinstance(part, str) for word in part.split(",")]
    return tuple(dict.fromkeys(word for word in words if word))


def _plain(text: str) -> str:
    """HTML as plain text, a line per paragraph."""
    text = _TAG.sub("", _BREAK.sub("\n", text))
    lines = (" ".join(line.split()) for line in html.unescape(text).splitlines())
    return "\n".join(line for line in lines if line)


def _permissions(model: Mapping[str, Any]) -> str:
    """What Civitai's four flags allow, as one line; empty when it says nothing of them."""
    if not any(name in model for name in _PERMISSIONS):
        return _text(model.get("license"))
    commercial = model.get("allowCommercialUse")
    uses = _words(str(commercial).strip("{}") if isinstance(commercial, str) else commercial)
    terms = ["commercial use: " + (", ".join(uses) or "none")] if "allowCommercialUse" in model else []
    for name, what in (
        ("allowNoCredit", "no credit needed"),
        ("allowDerivatives", "derivatives"),
        ("allowDifferentLicense", "another licence"),
    ):
        if name in model:
            terms.append(what if model[name] else f"not: {what}")
    return "; ".join(terms)
