"""Scores and verdicts that more than one page shows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.evaluation import error_slices
from lol_core.learning.leaderboard import leaderboard
from lol_core.learning.verdict import Verdict
from ui.tables import numbers, show

PREDICTS = 130
"""Pixels of what a model predicts, so that its score and the verdict are seen beside it."""


def show_leaderboard(models: Sequence[Checkpoint]) -> None:
    """Models with their seeds together, beside their controls; the best first."""
    table = leaderboard(models).dropna(axis=1, how="all")  # one seed each has no spread
    told = {"setting": table["setting"].fillna("")} if "setting" in table else {}  # most have nothing to be told
    formats = numbers("%.3f", ("test", "± std", "control score", "margin"))
    wide = {
        "predicts": st.column_config.TextColumn(width=PREDICTS),
        "setting": st.column_config.TextColumn(width="medium"),
    }
    if (table["seeds"] == 1).all():
        table = table.drop(columns="seeds")
    show(table.assign(**told), "leaderboard", column_config=formats | wide)


def show_verdict(verdict: Verdict, text: str) -> None:
    """A verdict in words, marked as good where the model is better than its controls."""
    st.markdown(f":material/{'check_circle' if verdict.better else 'warning'}: {text}")


def show_slices(errors: pd.Series, labels: pd.DataFrame) -> None:
    """In which parts of the LoRAs, by their labels, a model is worst."""
    slices = error_slices(errors, labels)
    if slices.empty:
        st.info("There is no other label to slice these LoRAs by, or too few of them.")
        return
    bar = st.column_config.ProgressColumn(min_value=0, max_value=float(slices["ratio"].max()), format="%.2f ×")
    formats = numbers("%.2g", ["p"]) | numbers("%.4g", ["mean error"]) | {"ratio": bar}
    show(slices.head(15), "slices", column_config=formats)
    text = "p: rank-sum test of a part against the rest, not corrected for their number."
    st.caption(f"Mean error of all: {errors.abs().mean():.4g}. {text}")
