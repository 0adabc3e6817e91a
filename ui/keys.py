"""The keys of widgets: one function, so that no two pages share one.

A widget's key is global to the session, and where the widget is bound to the URL it is also the name of its parameter.
"""

from __future__ import annotations

from ui.state import session

FRAME = "frame"
"""The place of the widgets in the sidebar, which are the same on every page."""


def key(name: str, place: str | None = None) -> str:
    """The session-wide key of a widget: its place, the present page where none is given, and its own name there."""
    return f"{(place or session().page).lower()}.{name}"
