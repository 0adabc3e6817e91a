"""Words of strangers on a page: names of files, labels, what files claim."""

from __future__ import annotations

import re

_MARKS = re.compile(r"[\\`*\[\]$~<|&]|(?<!\w)_|_(?!\w)|^[#>+-]|:(?=[\w/])|(?<=www)\.")
_LINK = re.compile(r"!\[|\]\(")
_NUMBER = re.compile(r"^(\d+)(?=[.)](\s|$))")


def plain(text: str) -> str:
    """A text that stands on a page as it is, where Streamlit reads Markdown: `**`, `$` and `1.` are no marks, and
    nothing becomes a link or a picture from elsewhere.
    """
    line = _MARKS.sub(r"\\\g<0>", re.sub(r"\s+", " ", text))
    return _NUMBER.sub(r"\1\\", line)


def inert(sentence: str) -> str:
    """A sentence of ours with strangers' words in it: its marks stay, but for those of pictures and of words that are
    links. An address that stands there in full may be one.
    """
    return _LINK.sub(lambda mark: "\\".join(["", *mark[0]]), sentence)
