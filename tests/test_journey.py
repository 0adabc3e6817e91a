"""The first journey in a real browser: open the app, look, train GL-net, read predictions, turn R, open a folder of
strangers' files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from lol_core.collections.samples import SAMPLES, sample_zoos
from tests.builders import MODULES, random_lora, turned, write_peft, write_zoo
from tests.conftest import SAMPLE_ZOO
from tests.waiting import until
from ui.frame import PAGES as LINKS

playwright = pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Page, expect  # noqa: E402  (only after the check above)

from tests.browser import CHROMIUM, MILLISECONDS, downloaded, server, settled  # noqa: E402  (it imports playwright too)

PAGES = [label for _, label, _ in LINKS]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),  # they share it, and the server
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium here"),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server prints."""
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("cache"), log) as started:
        yield started


def go(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    settled(page)


def needle_turned(page: Page, label: str) -> float:
    """By how many degrees the needle after R stands from that before it, on the first dial of that label."""
    dial = page.get_by_role("img", name=re.compile(label)).first
    places = [dial.locator(part).get_attribute("style") or "" for part in (".before", ".after")]
    before, after = (float(re.findall(r"rotate\(([-\d.]+)deg", place)[0]) for place in places)
    return abs(after - before)


def test_the_first_journey(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.get_by_text("LoRAs open, 0 files refused")).to_be_visible()
    settled(page)

    go(page, "Zoo")
    page.get_by_role("textbox", name="Search").fill("loras/0007")
    expect(page.get_by_text(re.compile(r"^1 of \d+ LoRAs"))).to_be_visible()

    go(page, "Train")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text("Trained models of this collection")).to_be_visible()
    expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible()  # the live curve
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    settled(page)
    page.get_by_test_id("stMain").get_by_text("Settings", exact=True).click()
    page.get_by_role("combobox", name="Models").click()
    page.get_by_role("option", name="MLP", exact=True).click()
    page.keyboard.press("Escape")
    settled(page)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    settled(page)

    go(page, "Predictions")
    expect(page.get_by_role("heading", name="Leaderboard")).to_be_visible()
    expect(page.get_by_text("95 % bootstrap interval")).to_be_visible()
    expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible()
    button = page.locator("button[kind=secondary]").filter(has_text="Download as CSV")
    rows = downloaded(page, button).read_text().splitlines()
    assert rows[0].startswith("lora,") and len(rows) > 300
    expect(page.get_by_test_id("stPlotlyChart")).to_have_count(2)  # a tab is drawn when it is looked at
    page.get_by_role("tab", name="Calibration").click()
    expect(page.get_by_text(re.compile(r"LoRAs in \d+ bins of equal number"))).to_be_visible()
    page.get_by_role("tab", name="Where models disagree").click()
    expect(page.get_by_text("Correlation of the first two")).to_be_visible()
    adapter = SAMPLE_ZOO / "loras" / "0007"
    page.locator("input[type=file]").set_input_files(
        sorted(path for path in adapter.iterdir() if path.suffix in (".json", ".safetensors"))
    )
    expect(page.get_by_text(re.compile("adapter_model.safetensors: PEFT"))).to_be_visible()

    go(page, "Invariance")
    settled(page)
    page.get_by_role("button", name="Draw another R").click()
    page.wait_for_url("**draw=2**")
    moved = page.get_by_test_id("stMetric").filter(has_text="U moved by").get_by_test_id("stMetricValue").inner_text()
    product = (
        page.get_by_test_id("stMetric").filter(has_text="ΔW moved by").get_by_test_id("stMetricValue").inner_text()
    )
    assert float(moved.rstrip("%")) > 10 and float(product) < 1e-5
    verdicts = {label: needle_turned(page, label) for label in ("GL-net.*it holds", "O-Align.*it moves, as it may")}
    assert verdicts["GL-net.*it holds"] < 0.1 < verdicts["O-Align.*it moves, as it may"]
    page.get_by_role("radio", name="R on its way through GL-net").click()
    expect(page.get_by_text("R enters with the factors")).to_be_visible()


def test_the_guided_visit_goes_on_where_one_was(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Begin: two minutes").click()
    expect(page.get_by_text("1 of 5", exact=True)).to_be_visible()
    expect(page.get_by_role("radio", name="Gallery")).to_be_checked()
    expect(page.get_by_role("button", name="Next: A model that reads weights")).to_be_visible()
    page.reload()
    expect(page.get_by_text("1 of 5", exact=True)).to_be_visible()
    settled(page)
    go(page, "Experiments")
    page.get_by_role("button", name="Go on with the visit (1 of 5)").click()
    expect(page.get_by_role("button", name="Leave the visit")).to_be_visible()
    settled(page)
    page.get_by_role("button", name="Leave the visit").click()
    expect(page.get_by_text("1 of 5", exact=True)).to_be_hidden()
    page.goto(address)
    expect(page.get_by_role("button", name="Go on: A model that reads weights")).to_be_visible()


def every_pair(pages: Sequence[str]) -> list[str]:
    """A walk in which every page is visited after every other."""
    walk = []
    for i, first in enumerate(pages[:-1]):
        walk.append(first)
        for other in pages[i + 1 :]:
            walk += [other, first]
    return walk


def test_the_walk_takes_every_page_directly_after_every_other() -> None:
    assert {(a, b) for a in PAGES for b in PAGES if a != b} <= set(pairwise(every_pair(PAGES)))


SWITCHED = """async ([name, title, patience]) => {
    const end = performance.now() + patience;
    const until = async (look) => {
        for (let found; ; await new Promise(later => setTimeout(later, 20))) {
            if ((found = look())) return found;
            if (performance.now() > end) throw new Error(`${name} did not come`);
        }
    };
    const links = () => [...document.querySelectorAll("[data-testid=stSidebar] a")];
    (await until(() => links().find(link => link.textContent.trim().endsWith(name)))).click();
    const idle = "[data-testid=stApp][data-test-script-state=notRunning]";
    await until(() => document.title === title && document.querySelector(idle));
    return document.querySelectorAll("[data-testid=stException]").length;
}"""
"""A click on a page's link, and how many errors it shows; done in the page, where each step of Playwright's would take
as long as the page itself does.
"""


@pytest.mark.parametrize("zoo", SAMPLES)
def test_every_page_after_every_other_in_one_session(zoo: str, page: Page, address: str, log: Path) -> None:
    """Directly after it on the first zoo; on the others, where pages take the same ways, at some time after it."""
    walk = every_pair(PAGES) if zoo == next(iter(SAMPLES)) else [*PAGES, *PAGES[-2::-1]]
    page.goto(f"{address}?collection={sample_zoos()[zoo]}")
    settled(page)
    for before, name in pairwise(walk):
        assert page.evaluate(SWITCHED, [name, f"{name} · LoL Explorer", MILLISECONDS]) == 0, f"{name} after {before}"
    assert "Traceback" not in log.read_text()


def test_strangers_files(page: Page, address: str, real_loras: Path) -> None:
    page.goto(f"{address}/Zoo?collection={real_loras}")
    expect(page.get_by_text("63 LoRAs open, 12 files refused")).to_be_visible()
    page.get_by_role("tab", name="Refused (12)").click()
    settled(page)
    go(page, "LoRA")
    expect(page.get_by_text("63 LoRAs open")).to_be_visible()
    expect(page.get_by_text("this LoRA was never trained")).to_be_visible()  # the first of them
    expect(page.get_by_role("heading", name="Layers", exact=True)).to_be_visible()


def test_nothing_is_asked_of_other_hosts(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in PAGES[1:4]:
        page.goto(f"{address}/{name}")
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        settled(page)
    assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_deep_links(page: Page, address: str) -> None:
    for name in ("LoRA", "Predictions", "Images", "Edit"):  # other journeys begin with the other pages
        page.goto(f"{address}/{name}")
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        settled(page)
        assert page.get_by_test_id("stException").count() == 0, name


def test_a_collection_typed_into_the_sidebar_is_opened_and_kept(
    page: Page, address: str, synthetic_folder: Path
) -> None:
    page.goto(address)
    settled(page)
    page.get_by_role("textbox", name="Collection").fill(str(synthetic_folder))
    page.get_by_role("textbox", name="Collection").press("Enter")
    expect(page.get_by_text("60 LoRAs open")).to_be_visible()
    go(page, "Zoo")
    expect(page.get_by_text("60 LoRAs open")).to_be_visible()
    assert "collection=" in page.url
    page.reload()
    expect(page.get_by_text("60 LoRAs open")).to_be_visible()
    page.get_by_role("textbox", name="Collection").fill("/no/such/folder")
    page.get_by_role("textbox", name="Collection").press("Enter")
    expect(page.get_by_text("not a folder")).to_be_visible()


def wait_for_an_epoch_after(page: Page, reached: int) -> int:
    """Until the training that the page shows is beyond that epoch; the epoch that it is in."""
    shown = "Number((document.body.innerText.match(/Epoch (\\d+) of/) ?? [0, 0])[1])"
    page.wait_for_function(f"reached => {shown} > reached", arg=reached)
    return int(page.evaluate(shown)) or reached


def test_settings_stay_open_and_a_training_stops_and_resumes(page: Page, address: str) -> None:
    page.goto(f"{address}/Train")
    settled(page)
    page.get_by_test_id("stMain").get_by_text("Settings", exact=True).click()
    for label, value in (("Epochs", "2000"), ("Patience", "0"), ("First seed", "7")):
        field = page.get_by_test_id("stNumberInput").filter(has_text=label).locator("input")
        field.fill(value)
        field.press("Enter")
        settled(page)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible()
    stop, resume = page.get_by_role("button", name="Stop"), page.get_by_role("button", name="Resume")
    reached = 0
    for last in (False, False, True):
        reached = wait_for_an_epoch_after(page, reached)
        stop.click()
        expect(stop).to_be_disabled()
        settled(page)
        expect(resume).to_be_enabled()
        if not last:
            resume.click()
    assert page.get_by_test_id("stException").count() == 0


def test_a_lasso_on_the_map_selects_in_the_table_for_this_visitor_and_is_exported(
    page: Page, address: str, synthetic_folder: Path
) -> None:
    page.goto(f"{address}/Map?collection={synthetic_folder}")
    chart = page.get_by_test_id("stPlotlyChart")
    expect(chart).to_be_visible()
    settled(page)
    box = chart.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    left, top, right, bottom = box["x"] + 2, box["y"] + 2, box["x"] + box["width"] * 0.5, box["y"] + box["height"] - 2
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    count = page.get_by_test_id("stSidebar").get_by_text(re.compile(r"^\d+ of 60 selected$"))
    expect(count).to_be_visible()
    chosen = int(count.inner_text().split()[0])
    assert 1 <= chosen < 60 and "selected=" in page.url
    expect(page.get_by_text("Effect: |2·AUC − 1|")).to_be_visible()
    go(page, "Zoo")
    page.get_by_test_id("stSidebar").get_by_text("Show only these").click()
    expect(page.get_by_text(re.compile(rf"^{chosen} of 60 LoRAs"))).to_be_visible()
    page.reload()
    expect(count).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_text("Save or export").click()
    rows = downloaded(page, page.get_by_role("button", name="CSV", exact=True)).read_text().splitlines()
    assert len(rows) == chosen + 1 and {"lora", "name", "size"} <= set(rows[0].split(","))
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context()
    stranger = context.new_page()
    stranger.goto(f"{address}/Zoo")
    expect(stranger.get_by_text(re.compile("LoRAs open"))).to_be_visible()
    assert "60 LoRAs open" not in stranger.content() and "collection=" not in stranger.url
    stranger.goto(f"{address}/Zoo?collection={synthetic_folder}")
    expect(stranger.get_by_text("60 LoRAs open")).to_be_visible()
    settled(stranger)
    assert stranger.get_by_text(re.compile("60 selected")).count() == 0, "another visitor sees nothing of it"
    context.close()


def test_points_are_walked_by_keyboard_with_their_previews(page: Page, address: str, tmp_path: Path) -> None:
    write_zoo(tmp_path, 12)
    (tmp_path / "previews").mkdir()
    for i in range(12):
        Image.new("RGB", (64, 32), (20 * i, 0, 0)).save(tmp_path / "previews" / f"lora{i:03d}.webp")
    page.goto(f"{address}/Map?collection={tmp_path}")
    chart = page.locator(".js-plotly-plot[tabindex='0']").first
    chart.wait_for()
    settled(page)
    card = page.get_by_test_id("pointCard")
    chart.focus()
    seen = set()
    for step in range(1, 13):
        page.keyboard.press("ArrowRight")
        expect(card).to_contain_text(f"{step} of 12")
        seen.add(card.inner_text().splitlines()[0])
        expect(card.locator("img")).to_have_attribute("src", re.compile("^data:image/webp"))
    assert seen == {f"lora{i:03d}" for i in range(12)}
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_two_files_that_are_the_same_function_are_found(page: Page, address: str, tmp_path: Path) -> None:
    lora = random_lora(MODULES, 1)
    for seed in range(2, 6):
        write_peft(tmp_path / f"other{seed}", random_lora(MODULES, seed))
    write_peft(tmp_path / "first", lora)
    write_peft(tmp_path / "second", turned(lora, condition=30.0))
    page.goto(f"{address}/Zoo?collection={tmp_path}")
    tab = page.get_by_role("tab", name="Same function (1)")
    expect(tab).to_be_visible()
    settled(page)
    tab.click()
    page.get_by_role("button", name="Select these").click()
    expect(page.get_by_text("2 of 6 selected")).to_be_visible()
    page.goto(f"{address}/LoRA?collection={tmp_path}&lora.lora=first&lora.beside=second")
    expect(page.get_by_text("They are the same function.")).to_be_visible()


def test_on_a_phone_the_sidebar_leaves_the_page_that_was_chosen_in_it(
    page: Page, address: str, synthetic_folder: Path
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/Zoo?collection={synthetic_folder}")
    sidebar = page.get_by_test_id("stSidebar")
    for name in ("Experiments", "Invariance"):
        settled(page).get_by_test_id("stExpandSidebarButton").click()
        expect(sidebar).to_have_attribute("data-collapsed", "false")
        sidebar.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(sidebar).to_have_attribute("data-collapsed", "true")
    page.get_by_test_id("stExpandSidebarButton").click()
    sidebar.get_by_text("PNG", exact=True).click()
    settled(page)
    expect(sidebar).to_have_attribute("data-collapsed", "false")


def test_r_is_turned_by_hand(page: Page, address: str, synthetic_folder: Path) -> None:
    page.goto(f"{address}/Invariance?collection={synthetic_folder}")
    page.get_by_text("by hand", exact=True).click()
    metric = page.get_by_test_id("stMetric").filter(has_text="U moved by").get_by_test_id("stMetricValue")
    expect(metric).to_have_text("0.0%")
    settled(page)
    grid = page.get_by_test_id("stDataFrame").first
    overlay = page.locator("#portal input")

    def opened() -> bool:
        """Whether the first cell, below the header, is open for writing; clicked again where the page has moved."""
        if overlay.is_visible():
            return True
        grid.scroll_into_view_if_needed()
        box = grid.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 30, box["y"] + 52)
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)  # what is drawn is not told otherwise; a miss costs one more try
        return overlay.is_visible()

    def write(value: str) -> None:
        settled(page)
        until(opened, "the first cell of R open")
        overlay.fill(value)
        overlay.press("Enter")

    write("5")
    expect(metric).not_to_have_text("0.0%")
    product = page.get_by_test_id("stMetric").filter(has_text="ΔW moved by").get_by_test_id("stMetricValue")
    assert float(product.inner_text()) < 1e-5
    write("0")
    expect(page.get_by_text("R has no inverse")).to_be_visible()
