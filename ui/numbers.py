"""Numbers that are typed on a page, whose limits the page itself tells: a field that knows them keeps the last number
within, and shows the other only in red.
"""

from __future__ import annotations

import streamlit as st


def outside(label: str, value: float | None, low: float, high: float) -> str | None:
    """What is wrong with a number that was typed: that it is not between its limits. None where it is, or is none."""
    if value is None or low <= value <= high:
        return None
    told, lowest, highest = (f"{number:,.10g}" for number in (value, low, high))
    return f"{label}: {told} is not between {lowest} and {highest}."


def refuse(*problems: str | None) -> None:
    """End the page with what is wrong, if anything is."""
    if told := [problem for problem in problems if problem]:
        st.error("  \n".join(told), icon=":material/error:")
        st.stop()
