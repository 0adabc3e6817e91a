"""The first page's pictures, in the colours of the theme, the collections that are offered, and the folder picker of
this computer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import streamlit as st

from lol_core.collections.samples import SAMPLES, archive_of, release
from ui import work
from ui.access import access
from ui.frame import open_collection
from ui.jobs import running
from ui.keys import key
from ui.progress import follow
from ui.state import ROOT, session

_ASK = (
    "from tkinter import Tk, filedialog; window = Tk(); window.withdraw(); window.attributes('-topmost', True);"
    " print(filedialog.askdirectory(title='A folder of LoRAs'))"
)


def picture(name: str, alt: str) -> None:
    """docs/images/home-NAME-THEME.webp, if it is there."""
    path = ROOT / "docs" / "images" / f"home-{name}-{st.context.theme.type or 'light'}.webp"
    if path.is_file():
        st.image(str(path), alt=alt, width="stretch")


def sample_buttons(address: str) -> None:
    """Open each collection that is offered, or download a sample zoo where it is not here and a release has it.
    address: of what is open.
    """
    state, here, published = session(), access().zoos, bool(release()) and not access().served
    with st.container(horizontal=True):
        for name, place in here.items():
            st.button(
                name,
                on_click=open_collection,
                args=(place,),
                icon=":material/folder_open:",
                disabled=address == place,
                help=f"{SAMPLES[name].subject}, fine-tuned for real" if access().sample(name) == place else None,
                key=key(f"open {name}"),
            )
        for name, sample in SAMPLES.items():
            if (
                published
                and name not in here
                and st.button(
                    f"Get {name} ({archive_of(name).bytes / 1e6:,.0f} MB)",
                    type="secondary" if here else "primary",
                    icon=":material/download:",
                    disabled=running(state.getting),
                    help=f"{sample.subject}, fine-tuned for real; with trained models. Downloaded once.",
                    key=key(f"get {name}"),
                )
            ):
                state.getting = work.get_sample(name)
                st.rerun()
    if (job := state.getting) is not None:
        follow(job, "stop_getting")
        if job.result is not None:
            state.getting = None
            open_collection(str(job.result))
            st.rerun()
    if not (here or published or access().served):
        st.caption("Zoos to look around in come with a clone of the program; no release has been published yet.")


@cache
def _has_screen() -> bool:
    """Whether a window can be opened here."""
    headless = sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if headless or find_spec("tkinter") is None:
        return False
    return subprocess.run([sys.executable, "-c", "from tkinter import Tk; Tk()"], capture_output=True).returncode == 0


def can_choose() -> bool:
    """Whether the visitor sits at the computer that the app runs on, and it has a screen."""
    return not access().served and st.context.ip_address in (None, "127.0.0.1", "::1") and _has_screen()


def choose() -> None:
    """Ask for a folder in a window of this computer, and open it."""
    answer = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True).stdout.strip()
    if answer:
        open_collection(answer)
