"""The first page's pictures, in the colours of the theme, and the folder picker of this computer."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import streamlit as st

from ui.frame import open_collection
from ui.state import ROOT

_ASK = (
    "from tkinter import Tk, filedialog; window = Tk(); window.withdraw(); window.attributes('-topmost', True);"
    " print(filedialog.askdirectory(title='A folder of LoRAs'))"
)


def picture(name: str) -> None:
    """docs/images/home-NAME-THEME.webp, if it is there."""
    path = ROOT / "docs" / "images" / f"home-{name}-{st.context.theme.type or 'light'}.webp"
    if path.is_file():
        st.image(str(path), width="stretch")


@cache
def _has_screen() -> bool:
    """Whether a window can be opened here."""
    headless = sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if headless or find_spec("tkinter") is None:
        return False
    return subprocess.run([sys.executable, "-c", "from tkinter import Tk; Tk()"], capture_output=True).returncode == 0


def can_choose() -> bool:
    """Whether the visitor sits at the computer that the app runs on, and it has a screen."""
    return st.context.ip_address in (None, "127.0.0.1", "::1") and _has_screen()


def choose() -> None:
    """Ask for a folder in a window of this computer, and open it."""
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True).stdout.strip()
    if answer:
        open_collection(answer)
