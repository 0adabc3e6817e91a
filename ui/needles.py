"""Models' predictions before and after R as needles on dials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamlit.components.v2 import component

from lol_core.insight.invariance import Dial
from lol_core.insight.plots.style import COLORS
from ui.keys import key

_HERE = Path(__file__).parent
_needles = component(
    "lol_explorer.needles", js=(_HERE / "needles.js").read_text(), css=(_HERE / "needles.css").read_text()
)


def needles(dials: Sequence[Dial]) -> None:
    """A dial for each model, in a row that wraps: the grey needle is the prediction before R, the coloured one after.
    As SVG: Plotly's charts took as long as the rest of the page.
    """
    _needles(data={"dials": [_shown(dial) for dial in dials]}, key=key("needles"))


def _shown(dial: Dial) -> dict[str, object]:
    """What the browser draws: texts, the needles' places on the scale, and the colour of the verdict."""
    return {
        "title": dial.title,
        "unit": dial.unit,
        "low": f"{dial.low:.3g}",
        "high": f"{dial.high:.3g}",
        "before": f"{dial.before:.5g}",
        "after": f"{dial.after:.5g}",
        "from": dial.place(dial.before),
        "to": dial.place(dial.after),
        "verdict": dial.verdict,
        "color": COLORS[2] if dial.keeps else COLORS[4],
    }
