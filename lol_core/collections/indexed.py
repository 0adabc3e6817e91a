"""What sources have in common whose entries are rows of an index."""

from __future__ import annotations

from functools import cached_property

from lol_core.collections.entries import ById, Entries
from lol_core.collections.source import Source, fingerprint_of


class Indexed(Source):
    """A source whose identities come from the index, so that no entry is made to know them."""

    entries: Entries

    @cached_property
    def ids(self) -> list[str]:
        return self.entries.ids

    @cached_property
    def by_id(self) -> ById:
        return ById(self.entries)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(zip(self.entries.ids, self.entries.column("digest"), strict=True))
