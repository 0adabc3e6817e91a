"""Addresses on the Hugging Face hub: `hf://owner`, `hf://owner/name@revision/folder`, `hf://datasets/owner/name`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote

from lol_core.errors import ZooError

SCHEME = "hf://"
_EXPECTED = (
    "expected hf://owner (all adapters of an author), hf://owner/name, hf://owner/beginning*,"
    " hf://owner/name@revision/folder or hf://datasets/owner/name"
)
_PART = re.compile(r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?", re.ASCII)
"""As the hub takes them; huggingface_hub raises what is no sentence of ours for others."""
_SECRET = re.compile(r"hf_[A-Za-z0-9]{10,}")


class Kind(StrEnum):
    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True)
class HubAddress:
    """name: of a repository, None for all of the owner's, with a `*` for those whose names fit; path: of a folder or
    file in it, "" for all of it.
    """

    kind: Kind
    owner: str
    name: str | None = None
    revision: str | None = None
    path: str = ""

    @property
    def repository(self) -> str:
        """As the hub names it. Of one repository only."""
        return f"{self.owner}/{self.name}"

    @property
    def several(self) -> bool:
        return self.name is None or "*" in self.name

    def __str__(self) -> str:
        kind = "datasets/" if self.kind is Kind.DATASET else ""
        name = "" if self.name is None else f"/{self.name}"
        revision = "" if self.revision is None else "@" + quote(self.revision, safe="")
        return f"{SCHEME}{kind}{self.owner}{name}{revision}{'/' + self.path if self.path else ''}"


def parse(address: str) -> HubAddress:
    """Raises ZooError when it is no address of the hub, or holds a token."""
    check_secrets(address)
    parts = [part for part in address.removeprefix(SCHEME).split("/") if part]
    kind = Kind.MODEL
    if parts and parts[0] in ("datasets", "models"):
        kind = Kind.DATASET if parts.pop(0) == "datasets" else Kind.MODEL
    if not parts or ".." in parts or (kind is Kind.DATASET and len(parts) < 2):
        raise ZooError(f"{address}: no address on the hub; {_EXPECTED}.")
    owner, *rest = parts
    name, _, revision = rest[0].partition("@") if rest else ("", "", "")
    for part in (owner, name.replace("*", "a") or "a"):
        if not _PART.fullmatch(part):
            raise ZooError(f"{address}: {part!r} is no name on the hub; {_EXPECTED}.")
    parsed = HubAddress(kind, owner, name or None, unquote(revision) or None, "/".join(rest[1:]))
    if parsed.several and (parsed.path or parsed.revision or kind is Kind.DATASET):
        raise ZooError(f"{address}: a revision or a folder belongs to one repository, and data sets open one by one.")
    return parsed


def check_secrets(address: str) -> None:
    """Raises ZooError, without repeating it, when an address holds a token or a password."""
    if _SECRET.search(address) or re.match(r"\w+://[^/@]*:[^/@]*@", address) or re.search(r"[?&]token=", address):
        raise ZooError(
            "The address holds a token or a password, which would stand in lists and logs. Leave it out, and log in"
            " with `hf auth login`."
        )
