"""What the page Edit asks for and shows of a merge."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from lol_core.collections.source import Source
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from lol_core.insight import plots
from lol_core.insight.generation import drawable_form
from lol_core.insight.learned import merger_for
from lol_core.insight.merge_report import CONDITION
from lol_core.insight.merging import Method
from ui import work
from ui.choice import choose_loras
from ui.drawing import BASE
from ui.figures import figure
from ui.frame import need
from ui.jobs import running, sentence
from ui.judged import show_drawn
from ui.keys import key
from ui.metadata import show_notes
from ui.numbers import outside, refuse
from ui.plain import plain
from ui.progress import follow
from ui.saving import show_download
from ui.selection import selected
from ui.state import known_base, load_lora, session
from ui.work import Merged, Merging

MOST = 6
ROUNDING = 1e-4
"""Share of a norm below which what was written is the sum."""
METHODS = {
    Method.SUM: "sum of ΔW",
    Method.KNOTS: "KnOTS: TIES in a basis that all share",
    Method.LEARNED: "learned: a network trained for this base model",
    Method.TIES_SVD: "TIES on ΔW",
    Method.DARE_LINEAR_SVD: "DARE on ΔW",
    Method.DARE_TIES_SVD: "DARE-TIES on ΔW",
    Method.MAGNITUDE_PRUNE_SVD: "largest entries of ΔW",
    Method.LINEAR: "sum of factors",
    Method.TIES: "TIES on factors",
    Method.DARE_LINEAR: "DARE on factors",
    Method.DARE_TIES: "DARE-TIES on factors",
    Method.MAGNITUDE_PRUNE: "largest entries of factors",
}
HELP = (
    "By ΔW a merge does not depend on which factors a LoRA is written with, (U, V) or (UR, VR⁻ᵀ); by factors it does."
    " TIES keeps the largest entries and averages those of the elected sign; DARE drops entries at random; KnOTS is"
    " TIES in coordinates that all LoRAs share."
)
EACH, MEAN, OWN = "1 each", "mean", "own"
MERGED = "Merged"


def merge_several(source: Source) -> None:
    """The whole of it: choose, merge, look, save."""
    state = session()
    asked, loras = _ask(source)
    job, busy = state.merging, running(state.merging)
    if st.button("Merge", type="primary", icon=":material/merge:", disabled=busy, key=key("merge")):
        drawable = bool(known_base(source)) or drawable_form(loras[0]) is not None
        state.merging = work.merge_loras(source, loras, asked, drawable=drawable)
        st.rerun()
    if job is not None:
        follow(job, "stop_merging")
        if not busy and job.result is not None:
            state.merged, state.merging = (job.subject, job.result), None
            st.rerun()
    if state.merged is None or state.merged[0].place != source.fingerprint:
        need(False, "Choose LoRAs and press **Merge**. Those in the collection stay as they are.")
        return
    done, made = state.merged
    names = [source.names[id] for id in done.ids]
    if done != asked:
        st.caption("What is shown is the last merge, not yet what is chosen above. Press **Merge** for that.")
    for remark in made.remarks:
        st.warning(plain(remark), icon=":material/warning:")
    for name, notes in zip(names, made.notes, strict=True):
        show_notes(notes, name)
    _show_numbers(done, made, names)
    if made.file is not None:
        titles = [name if name not in (BASE, MERGED) else f"LoRA {name}" for name in names]
        columns = dict(zip(titles, made.parts, strict=True))
        show_drawn(source, {**columns, MERGED: made.file, BASE: None}, done.ids)
    _show_modules(made, names)
    st.subheader("Save")
    name = "-".join(["merge", *(Path(name).name for name in names)])
    show_download(made.report.merged.lora, made.key, name, given=made.given)


def _ask(source: Source) -> tuple[Merging, list[LoRA]]:
    """What is to be merged, as chosen. Ends the page where fewer than two can be read."""
    marked = selected(source)[:MOST]
    first = marked if len(marked) > 1 else source.ids[:2]
    text = f"Two to {MOST}, of one base model. Those that are selected come first."
    ids = choose_loras(source, source.ids, "merged", "LoRAs", default=first, max_selections=MOST, help=text)
    need(len(ids) > 1, "Choose two LoRAs or more.")
    try:
        loras = [load_lora(source, id) for id in ids]
    except LoLError as error:
        st.error(sentence(error), icon=":material/broken_image:")
        st.stop()
    with st.container(border=True):
        a, b, c = st.columns(3)
        of = {
            words: method
            for method, words in METHODS.items()
            if method is not Method.LEARNED or merger_for(loras[0]) is not None
        }
        method = of[a.selectbox("Method", list(of), key=key("merge_method"), bind="query-params", help=HELP)]
        largest = [max(lora.ranks) for lora in loras]
        text = f"Of the merge. {sum(largest)} holds the whole sum."
        rank = b.slider("Rank", 1, sum(largest), max(largest), key=key(f"merge_rank_{sum(largest)}"), help=text)
        text = f"mean: 1/{len(ids)} each; with a rank it is the LoRA nearest to all. own: one for each."
        how = c.segmented_control("Weights", [EACH, MEAN, OWN], default=EACH, key=key("weights"), help=text)
        weights = [1 / len(ids) if how == MEAN else 1.0] * len(ids)
        if how == OWN:
            titles = [plain(source.names[id]) for id in ids]
            for i, (id, place) in enumerate(zip(ids, st.columns(len(ids)), strict=True)):
                weights[i] = place.number_input(titles[i], value=1.0, step=0.1, key=key(f"weight_{id}"))
            refuse(*(outside(title, weight, -4, 4) for title, weight in zip(titles, weights, strict=True)))
        density = 1.0
        if method.trims or method.dare:
            text = "The share of entries that are kept."
            density = st.slider("Density", 0.05, 1.0, 0.5, 0.05, key=key("density"), help=text)
    return Merging(source.fingerprint, tuple(ids), tuple(weights), rank, method, density), loras


def _show_numbers(done: Merging, made: Merged, names: list[str]) -> None:
    report = made.report
    a, b, c = st.columns(3)
    text = "What the cut to the rank leaves out: ‖M − M′‖ / ‖M‖ of the whole merge M and of M′, which is saved below."
    a.metric("Left out by the rank", f"{report.merged.lost:.1%}", help=text)
    text = "‖ΔW − Σ w ΔWᵢ‖ / ‖Σ w ΔWᵢ‖ of what is saved below."
    b.metric("Away from the sum", f"{report.from_sum:.1%}", help=text)
    text = (
        f"By how much of its norm the merge moves when {plain(names[-1])} is written by other factors of the same"
        f" function (R of condition number {CONDITION:g})."
    )
    c.metric("By other factors", "the same" if report.turned is None else f"moves by {report.turned:.0%}", help=text)
    words = ", ".join(f"{weight:g} × {plain(name)}" for weight, name in zip(done.weights, names, strict=True))
    kept = f", density {done.density:g}" if done.method.trims or done.method.dare else ""
    st.caption(f"{METHODS[done.method]}, rank {done.rank}{kept}: {words}.")


def _show_modules(made: Merged, names: list[str]) -> None:
    table = made.report.modules
    st.subheader("What each layer kept")
    titles = {f"cosine {i + 1}": name for i, name in enumerate(names)}
    figure(
        plots.merged_modules(table.rename(columns=titles), list(titles.values())),
        "merged_modules",
        "How far each module's merge is from the sum, and its cosine with each LoRA",
        table.rename(columns=titles).rename_axis("module"),
    )
    if (away := pd.Series(table["from the sum"]).nlargest(1)).gt(ROUNDING).any():
        st.caption(f"Furthest from the sum: `{away.index[0]}` ({away.iloc[0]:.0%}).")
