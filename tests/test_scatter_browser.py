"""The map of many points in a browser. The points are synthetic: no LoRA was made for them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from tests.scatter_app import synthetic

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, a development tool, is not installed")

from playwright.sync_api import Locator, Page, expect  # noqa: E402  (only after the check above)

from tests.browser import CHROMIUM, server, settled  # noqa: E402  (it imports playwright too)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("wheel"),  # a second browser, beside that of the journeys
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium here"),
]
COUNT = 20_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("cache"), script="tests/scatter_app.py") as started:
        yield f"{started}/?points={COUNT}"


class Traffic:
    """Bytes that the server has sent over its socket, and the places that the page has asked."""

    def __init__(self, page: Page) -> None:
        self.received, self.asked = 0, set[str]()
        page.on("request", lambda request: self.asked.add(re.sub(r"^(\w+:/*[^/:]*).*", r"\1", request.url)))
        page.on("websocket", lambda socket: socket.on("framereceived", self.count))

    def count(self, frame: str | bytes) -> None:
        self.received += len(frame)


def drawn(page: Page, address: str, count: int = COUNT) -> Locator:
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.goto(address)
    shown = page.get_by_test_id("pointMap")
    expect(shown).to_have_attribute("data-drawn", re.compile("."))
    expect(shown.get_by_text(f"{count:,} points")).to_be_visible()
    return shown


def pixels(shown: Locator, count: int = COUNT) -> np.ndarray:
    """Where the points are drawn on the screen: both axes in one scale, all of them in view. (points, 2)"""
    box = shown.locator("canvas").bounding_box()
    assert box is not None
    xy = synthetic(count)[0].to_numpy(np.float32)
    low, high = xy.min(0), xy.max(0)
    half = (high - low) / 2
    scale = 1 / (1.06 * max(2 * half[1] / box["height"], 2 * half[0] / box["width"]))
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    return middle + (xy - (low + high) / 2) * scale * [1, -1]


def python_has(page: Page) -> int:
    return int(re.findall(r"Python has (\d+) selected", page.get_by_test_id("stMarkdown").first.inner_text())[0])


def drag(page: Page, corners: list[tuple[float, float]]) -> None:
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=6)
    page.mouse.up()


@pytest.mark.parametrize("tool", ["Lasso", "Box"])
def test_a_drag_selects_what_it_surrounds(page: Page, address: str, tool: str) -> None:
    shown = drawn(page, address)
    shown.get_by_role("button", name=tool).click()
    at = pixels(shown)
    left, top = at.min(0) - 3
    right, bottom = at[2]
    ring = [(right, bottom), (left, bottom), (left, top), (right, top), (right, bottom)]  # closed on a point: no click
    drag(page, ring if tool == "Lasso" else [ring[2], ring[0]])
    expect(page.get_by_text(re.compile(r"Python has [1-9]\d* selected"))).to_be_visible()
    slack = 4.0  # pixels that the path of the mouse may be off
    least, most = ((at < [right + margin, bottom + margin]).all(1).sum() for margin in (-slack, slack))
    assert least <= python_has(page) <= most
    expect(shown.get_by_text(re.compile(rf"^{python_has(page):,} of {COUNT:,} selected"))).to_be_visible()
    shown.locator(".lol-map-plot").press("Escape")
    expect(page.get_by_text("Python has 0 selected")).to_be_visible()
    expect(shown.get_by_text(f"{COUNT:,} points")).to_be_visible()


def gap(places: np.ndarray, share: float) -> float:
    """The middle of the widest gap between neighbouring places, near a quantile."""
    ordered = np.sort(places)
    near = ordered[int(len(ordered) * share) - 20 : int(len(ordered) * share) + 20]
    widest = np.diff(near).argmax()
    assert near[widest + 1] - near[widest] > 2, "pixels"
    return float(near[widest : widest + 2].mean())


@pytest.mark.parametrize("tool", ["Box", "Lasso"])
@pytest.mark.parametrize("start", ["top left", "top right", "bottom left", "bottom right"])
def test_a_quick_drag_selects_the_points_between_where_it_began_and_ended(
    page: Page, address: str, start: str, tool: str
) -> None:
    few = 400
    shown = drawn(page, address.replace(str(COUNT), str(few)), few)
    shown.get_by_role("button", name=tool).click()
    at = pixels(shown, few)
    left, right = (gap(at[:, 0], share) for share in (0.15, 0.8))
    top, bottom = (gap(at[:, 1], share) for share in (0.15, 0.8))
    first = (right if "right" in start else left, bottom if "bottom" in start else top)
    last = (left + right - first[0], top + bottom - first[1])
    corners = [first, last] if tool == "Box" else [first, (last[0], first[1]), last, (first[0], last[1])]
    page.mouse.move(*first)
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)  # at once, as a flick of the hand
    page.mouse.up()
    inside = np.flatnonzero(((at > [left, top]) & (at < [right, bottom])).all(1))
    assert 40 < len(inside) < few - 40
    expect(page.get_by_text(f"Python has {len(inside)} selected")).to_be_visible()
    expect(page.get_by_text("Chosen: ")).to_have_text("Chosen: " + " ".join(f"p{i}" for i in inside))


def test_a_selection_from_outside_is_shown_and_counted_and_columns_travel_once(page: Page, address: str) -> None:
    traffic = Traffic(page)
    shown = drawn(page, address)
    assert traffic.received > 8 * COUNT  # two float32 a point
    settled(page)  # the script has ended, so everything it sends is there
    before = traffic.received
    bare = shown.locator("canvas").screenshot()
    page.get_by_role("button", name="Select the first hundred").click()
    expect(shown.get_by_text(f"100 of {COUNT:,} selected")).to_be_visible()
    for cloud in range(7):  # eight clouds in turn; the eighth has no colour of its own
        own = 13 if cloud < 4 else 12
        expect(shown.get_by_role("button", name=f"cloud {cloud} {own} of 2,500")).to_be_visible()
    expect(shown.get_by_role("button", name="other 12 of 2,500")).to_be_visible()
    assert shown.locator("canvas").screenshot() != bare
    shown.get_by_role("button", name="cloud 2 13 of 2,500").click()
    expect(page.get_by_text("Python has 2500 selected: p2, p10, p18")).to_be_visible()
    assert traffic.received - before < 8 * COUNT
    assert {place for place in traffic.asked if place.startswith("http")} == {"http://127.0.0.1"}


def test_colours_change_without_new_coordinates(page: Page, address: str) -> None:
    shown = drawn(page, address)
    coordinates, colour = (shown.get_attribute(f"data-{name}") for name in ("drawn", "colour"))
    page.get_by_role("radio", name="height").click()
    expect(shown).not_to_have_attribute("data-colour", str(colour))
    expect(shown).to_have_attribute("data-drawn", str(coordinates))
    heights = synthetic(COUNT)[2]["height"]
    expect(shown.get_by_text(f"{heights.max():.3f}")).to_be_visible()


def test_a_map_that_comes_back_is_as_it_was_and_shows_what_changed_meanwhile(page: Page, address: str) -> None:
    few = 400
    shown = drawn(page, address.replace(str(COUNT), str(few)), few)
    page.evaluate(
        """() => {
            window.frames_ = 0
            const { prototype } = CanvasRenderingContext2D
            const draw = prototype.drawImage
            prototype.drawImage = function (...all) { window.frames_++; return draw.apply(this, all) }
        }"""
    )
    toggle = page.get_by_text("Map", exact=True)
    bare = shown.locator("canvas").screenshot()

    def away_and_back(change: str = "") -> int:
        """How often the points were drawn."""
        toggle.click()
        expect(shown).to_have_count(0)
        if change:
            page.get_by_text(change).click()
            settled(page)
        before = page.evaluate("window.frames_")
        toggle.click()
        expect(shown).to_be_visible()
        settled(page)
        return int(page.evaluate("window.frames_")) - before

    assert away_and_back() == 0
    assert shown.locator("canvas").screenshot() == bare
    away_and_back("Select the first hundred")
    expect(shown.get_by_text(f"100 of {few} selected")).to_be_visible()
    page.wait_for_function("window.frames_ > 0")
    colour = str(shown.get_attribute("data-colour"))
    away_and_back("height")
    expect(shown).not_to_have_attribute("data-colour", colour)
    expect(shown.get_by_text(f"100 of {few} selected")).to_be_visible()
    shown.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Python has 0 selected")).to_be_visible()


def test_mouse_and_arrow_keys_show_names_values_and_previews(page: Page, address: str) -> None:
    shown = drawn(page, address)
    at = pixels(shown)
    far = KDTree(at).query(at, 2)[0][:, 1]
    far[np.arange(COUNT) % 10 > 0] = 0  # only names that end in 0 have a preview
    alone = int(far.argmax())
    page.mouse.move(*at[alone] + [30, 0])
    page.mouse.move(*at[alone], steps=3)
    card = page.get_by_test_id("mapCard")
    expect(card).to_contain_text(f"synthetic point p{alone}")
    expect(card).to_contain_text("cloud: ")
    expect(card.locator("img")).to_be_visible()
    plot = shown.locator(".lol-map-plot")
    plot.focus()
    names = []
    for pressed in ("ArrowRight", "ArrowUp", "ArrowLeft"):
        before = card.inner_text()
        plot.press(pressed)
        expect(card).not_to_have_text(before)
        names.append(card.inner_text())
    assert len(set(names)) == 3
    plot.press("Enter")
    expect(page.get_by_text("Python has 1 selected")).to_be_visible()


def test_the_map_is_light_or_dark_as_the_page_is(page: Page, address: str) -> None:
    shown = drawn(page, address)

    def brightness() -> float:
        picture = Image.open(io.BytesIO(shown.locator("canvas").screenshot())).convert("L")
        return float(np.median(np.asarray(picture)))

    assert brightness() > 240
    page.emulate_media(color_scheme="dark")
    expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", "dark")
    assert brightness() < 40
