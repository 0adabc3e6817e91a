"""`make screenshots`: every page, light and dark, 1280 and 390 pixels wide, as PNG files in .screenshots/.

Uses the user's own cache, so that models trained there are shown.
"""

from __future__ import annotations

import sys
from typing import Literal

from lol_core.collections.cache import cache_folder
from tests.browser import ROOT, chromium, server, settled
from ui.frame import PAGES as LINKS

PAGES = ["", *(label for _, label, _ in LINKS[1:])]
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(pages: list[str]) -> None:
    out = ROOT / ".screenshots"
    out.mkdir(exist_ok=True)
    with server(cache_folder()) as address, chromium() as browser:
        for scheme in SCHEMES:
            for width in (1280, 390):
                for name in pages or PAGES:
                    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                    page = context.new_page()
                    page.goto(f"{address}/{name}")
                    settled(page)
                    page.wait_for_timeout(1200)
                    height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
                    page.set_viewport_size({"width": width, "height": min(max(900, height + 40), 4000)})
                    page.wait_for_timeout(700)
                    path = out / f"{name or 'Home'}-{scheme}-{width}.png"
                    page.screenshot(path=path)
                    print(path)
                    context.close()


if __name__ == "__main__":
    main(sys.argv[1:])
