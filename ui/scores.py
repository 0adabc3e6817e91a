"""Tables of scores that more than one page shows."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.leaderboard import leaderboard
from ui.keys import key


def show_leaderboard(models: Sequence[Checkpoint]) -> None:
    """Models with their seeds together, beside their controls; the best first."""
    numbers = {
        name: st.column_config.NumberColumn(format="%.3f") for name in ("test", "± std", "control score", "margin")
    }
    st.dataframe(leaderboard(models), hide_index=True, key=key("leaderboard"), column_config=numbers)
