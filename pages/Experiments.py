"""The paper's tables and figures measured on the sample zoos: beside the paper's numbers, with a verdict on each
finding.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lol_core.errors import LoLError
from lol_core.experiments import NAMES, OF_PAPER
from lol_core.experiments.result import PAPER, Result, blocks
from ui.figures import figure, take
from ui.frame import counted, frame, need
from ui.jobs import ExperimentJob
from ui.keys import key
from ui.progress import follow
from ui.state import RESULTS, SAMPLES, session

ICONS = {
    "holds": ":material/check_circle:",
    "holds, not clearly": ":material/help:",
    "does not hold": ":material/cancel:",
}
SAID = {"holds": "hold", "holds, not clearly": "hold, but not clearly", "does not hold": "do not hold"}
COLOURS = {"holds": "green", "holds, not clearly": "orange", "does not hold": "red"}

frame("Experiments")
state = session()


def show(result: Result, name: str) -> None:
    """Findings, figure, tables, notes and settings of one experiment."""
    for finding in result.findings:
        st.markdown(
            f"{ICONS[finding.holds]} :{COLOURS[finding.holds]}[**{finding.holds}**] · {finding.paper}  \n:gray[Here:"
            f" {finding.here}]"
        )
    figure(
        result.figure,
        f"{name}_figure",
        f"{result.title}. {' '.join(finding.here for finding in result.findings)}",
        result.cells,
    )
    for i, (heading, table) in enumerate(blocks(result.cells)):
        if heading:
            st.markdown(f"**{heading[:1].upper()}{heading[1:]}**")
        st.dataframe(table, key=key(f"{name}_table_{i}"))
    take(lambda: result.cells, f"{name}_table")
    for note in result.notes:
        st.caption(note)
    with st.expander("Settings", icon=":material/tune:", key=key(f"{name}_settings")):
        st.json(result.settings, expanded=1)


found: dict[str, Result] = {}
for name in NAMES:
    try:
        found[name] = Result.read(RESULTS / name)
    except LoLError:
        continue

st.markdown(
    f"The tables and figures of [*Learning on LoRAs*]({PAPER}), measured on the sample zoos. Those zoos are smaller"
    " than the paper's and made of other models, so what can be compared is what was found, not the figures."
)
titles = {name: f"{name[:-1].capitalize()} {name[-1]}" if name[-1].isdigit() else name.capitalize() for name in NAMES}
counts = pd.DataFrame(
    {
        word: [
            (
                sum(finding.of_paper and finding.holds == word for finding in found[name].findings)
                if name in found
                else pd.NA
            )
            for name in OF_PAPER
        ]
        for word in ICONS
    },
    index=pd.Index([found[name].title if name in found else titles[name] for name in OF_PAPER], name="experiment"),
).astype("Int64")
with st.expander(
    (
        f"Of the paper's findings {', '.join(f'{counts[word].sum()} {said}' for word, said in SAID.items())}"
        if found
        else "Nothing has been run here yet"
    ),
    icon=":material/fact_check:",
    key=key("overview"),
):
    st.dataframe(counts, key=key("findings"))

chosen = st.selectbox(
    "Table or figure", NAMES, format_func=titles.__getitem__, key=key("experiment"), bind="query-params"
)
command = f"python -m lol_core experiment {chosen} --out docs"
job = state.experiment

left, right = st.columns([3, 1], vertical_alignment="center")
left.code(command, language="bash")
busy = job is not None and job.running
if right.button(
    "Run it small",
    icon=":material/play_arrow:",
    key=key("run_small"),
    width="stretch",
    disabled=busy,
    help="A few LoRAs, one seed, two epochs, in seconds: shows how it runs. The command beside it runs it in full.",
):
    state.experiment = job = ExperimentJob(chosen, SAMPLES)
    job.start()
    st.rerun()
if job is not None:
    follow(job, "stop_experiment")
    if job.error is not None:
        st.error(job.error)
    elif job.result is not None:
        with st.expander(
            f"{job.result.title}", icon=":material/science:", expanded=job.name == chosen, key=key(f"small_{job.name}")
        ):
            show(job.result, "small")

need(
    chosen in found,
    f"{titles[chosen]} has not been run in full. Run `{command}` in the program's folder; it takes from minutes to"
    " hours and can be stopped.",
)
st.subheader(found[chosen].title)
show(found[chosen], chosen)
st.caption(
    f"{counted(len(found), 'experiment')} in `docs/results/`, each with its table, its figure and its settings;"
    " `docs/results.md` has all of them on one page."
)
