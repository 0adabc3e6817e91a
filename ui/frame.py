"""The frame of every page: title, navigation, and the collection that is open."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import streamlit as st
from streamlit.components.v2 import component

from lol_core.collections.names import counted
from lol_core.collections.source import Source, facts_of
from lol_core.errors import LoLError, ZooError
from ui import visit, work
from ui.access import access
from ui.jobs import running, sentence
from ui.keys import FRAME, key
from ui.plain import inert
from ui.progress import follow
from ui.selection import panel, restore
from ui.state import MAX_OPEN, ROOT, remember, session
from ui.tables import show

T = TypeVar("T")
ICON = ROOT / "docs" / "images" / "icon.png"  # a file: browsers would ask Google for one of Streamlit's
FIRST = 100  # LoRAs that are shown of a collection whose headers are being read
_sidebar = component("lol_explorer.sidebar", js=(Path(__file__).parent / "sidebar.js").read_text())
PATIENCE = 1.0  # seconds that a page waits for the headers of a collection before it shows their progress
PAGES = (
    ("app.py", "Home", ":material/home:"),
    ("pages/Zoo.py", "Zoo", ":material/table_rows:"),
    ("pages/LoRA.py", "LoRA", ":material/layers:"),
    ("pages/Map.py", "Map", ":material/scatter_plot:"),
    ("pages/Train.py", "Train", ":material/model_training:"),
    ("pages/Predictions.py", "Predictions", ":material/insights:"),
    ("pages/Invariance.py", "Invariance", ":material/rotate_right:"),
    ("pages/Images.py", "Images", ":material/image:"),
    ("pages/Edit.py", "Edit", ":material/edit:"),
    ("pages/Experiments.py", "Experiments", ":material/science:"),
)


def frame(page: str, *, loras: bool = False) -> Source:
    """Draw the frame and return the open collection. Ends the page, with what to do, when there is none to show.

    page: its name, which the keys of its widgets carry; loras: whether there is nothing to show without a LoRA.
    """
    source = frame_or_nothing(page)
    default = Path(access().first).name
    text = "Nothing is open. Open a collection on the page **Home**, or under **Collection** in the sidebar"
    text = f"{text}; empty that field for {default}." if default else f"{text}."
    if session().url["labels"]:
        text = "Nothing is open. Correct **Collection** or **Labels file** in the sidebar, or empty the latter."
    source = needed(source, text)
    text = "No LoRA could be read in this collection. Open another in the sidebar; the page Zoo says what was refused."
    need(len(source) or not loras, text)
    return source


def frame_or_nothing(page: str, title: str = "") -> Source | None:
    """Draw the frame and return the open collection; None where none was named, or, with the reason on the page, where
    it cannot be opened. title: what stands above the page, its name by default.
    """
    st.set_page_config(page_title=f"{page} · LoL Explorer", page_icon=ICON, layout="wide")
    session().page = page
    adopt_short_links()
    default = access().first
    with st.sidebar:
        st.markdown("### LoL Explorer\nLearning on LoRAs")
        navigation = st.container()
        st.divider()
        address = url_field(
            "collection",
            "Collection",
            f"One of {', '.join(access().zoos)}, or hf://owner/name of the hub."
            if access().served
            else "Where the LoRAs are: a folder on this computer, or another address that can be opened. It is only"
            " ever read.",
            Path(default).name or ("hf://owner/name" if access().served else "the path of a folder"),
        )
        labels = url_field(
            "labels",
            "Labels file",
            "A CSV or Parquet table: one column names the files, the others are labels.",
            "labels.csv in the folder",
        )
        rescan = st.button("Look for changes", icon=":material/refresh:", width="stretch")
        formats = ["svg", "png"]
        session().picture = (
            st.segmented_control(
                "Figures save as", formats, default=session().picture, format_func=str.upper, key=key("picture", FRAME)
            )
            or "svg"
        )
    with navigation:
        for path, label, icon in PAGES:
            page_link(path, label, icon)
        _sidebar(data={"page": page}, key=key("sidebar", FRAME))
    st.title(title or page)
    if not (address or default):
        return None
    try:
        source = opened(address or default, labels, rescan)
    except LoLError as error:
        st.error(sentence(error), icon=":material/folder_off:")
        return None
    restore(source)
    with st.sidebar:
        switcher(source)
        for remark in (*filter(None, [source.labels_problem]), *source.remarks):
            st.warning(inert(remark))
        st.caption(
            f"{counted(len(source), 'LoRA')} open, {counted(len(source.refused), 'file')} refused,"
            f" {counted(source.labels.shape[1], 'label column')}."
        )
        if access().served:
            st.caption("What you train or mark here is yours alone. It goes when you close or reload this page.")
        panel(source)
        if running(session().training):
            page_link("pages/Train.py", "Training is running", ":material/hourglass_top:")
    visit.guide(page, source)
    return source


def adopt_short_links() -> None:
    """A parameter without its page's name, as links had them once (`?q=`), is that of the widget here."""
    short = [name for name in st.query_params if "." not in name and name not in session().url]
    for name in short:
        st.query_params[key(name)] = st.query_params.get_all(name)
        del st.query_params[name]
    if short:
        st.rerun()  # a widget takes its value from the URL as it was when the run began


def switcher(source: Source) -> None:
    """The collections open in this session, to change between them without opening them again."""
    places, sources = list(session().opened), list(session().opened.values())
    if len(places) < 2:
        return
    names = [f"{other.name} ({len(other):,})" for other in sources]
    present = next(i for i, other in enumerate(sources) if other is source)
    chosen = st.selectbox(
        "Open collections",
        range(len(places)),
        index=present,
        format_func=names.__getitem__,
        key=key(f"switch_{len(places)}_{present}", FRAME),
    )
    if chosen != present:
        open_collection(*places[chosen])
        st.rerun()


def open_collection(address: str, labels: str = "") -> None:
    """Make a collection the open one at the next run of the page."""
    set_url("collection", "" if address == access().first else address)
    set_url("labels", labels)


def url_field(name: str, label: str, help: str, placeholder: str) -> str:
    """A text field that the whole session shares and that stands in the URL; a URL that says something else wins.

    Written by hand because a value bound by Streamlit is lost at the next change of page when it came with the URL.
    """
    url = session().url
    if st.query_params.get(name, url[name]) != url[name]:
        url[name] = st.query_params[name]
    typed = st.text_input(label, value=url[name], help=help, placeholder=placeholder)
    if typed != url[name]:
        set_url(name, typed)
        st.rerun()
    set_url(name, url[name])
    return url[name]


def set_url(name: str, value: str) -> None:
    """Make a value that `url_field` shows the session's, and the URL's."""
    session().url[name] = value
    if value:
        st.query_params[name] = value
    else:
        st.query_params.pop(name, None)


def page_link(page: str, label: str, icon: str, **params: str) -> None:
    """A link to a page that takes the open collection along, which a plain `st.page_link` would drop from the URL.

    params: values of the page's widgets, by their names there.
    """
    st.page_link(
        page,
        label=label,
        icon=icon,
        width="stretch",
        query_params={name: value for name, value in session().url.items() if value}
        | {key(name, Path(page).stem): value for name, value in params.items()},
    )


def opened(address: str, labels: str, rescan: bool = False) -> Source:
    """The collection. Where this session has not opened it yet its headers are read beside the page, which ends here
    with the progress until they are.

    Raises ZooError.
    """
    state, place = session(), (address, labels)
    if not rescan and place in state.opened:
        with suppress(ZooError):
            state.opened[place].check()
            return state.opened[place]
    state.opened.pop(place, None)
    job = state.opening
    if job is None or job.subject != place:
        if job is not None:
            job.stop()
        state.opening = job = work.open_collection(address, labels)
        job.wait(PATIENCE)
    if job.running:
        st.caption(
            f"Opening {access().text(address)}. Other pages and collections can be looked at meanwhile; what has been"
            " read is not read again."
        )
        follow(job, "stop_index")
        if state.page == "Zoo":
            st.fragment(list_so_far, run_every=2.0)(address)
        st.stop()
    state.opening = None
    if job.error is not None:
        raise ZooError(job.error)
    if job.result is None:
        st.info("Stopped before all headers were read.", icon=":material/arrow_forward:")
        st.button("Go on reading", type="primary", icon=":material/play_arrow:")
        if state.page == "Zoo":
            list_so_far(address)
        st.stop()
    while len(state.opened) >= MAX_OPEN:
        state.opened.pop(next(iter(state.opened)))
    state.opened[place] = job.result
    if job.result.address not in access().zoos.values():
        remember(job.result.address, labels)
    return job.result


def list_so_far(address: str) -> None:
    """The first LoRAs of a collection of which not all headers have been read."""
    known = access().so_far(address, FIRST)
    if known is None or not known.entries:
        return
    paths = {entry.path: entry.path for entry in known.entries}
    some = f"the first {FIRST:,} by path" if known.total > FIRST else "all"
    st.caption(
        f"{counted(known.total, 'LoRA')} known so far; here are {some}. Labels, search and everything else come when"
        " all headers have been read."
    )
    show(facts_of(known.entries, paths).drop(columns="path"), "so_far")


def need(condition: object, message: str) -> None:
    """End the page with what to do next when a condition is not met."""
    if not condition:
        st.info(message, icon=":material/arrow_forward:")
        st.stop()


def needed(value: T | None, message: str) -> T:
    """The value; ends the page with what to do next when it is none."""
    need(value is not None, message)
    assert value is not None
    return value
