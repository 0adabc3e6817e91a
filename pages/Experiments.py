"""The paper's tables and figures measured on the sample zoos: beside the paper's numbers, with a verdict on each
finding.
"""

from __future__ import annotations

import streamlit as st

from lol_core.collections.names import counted
from lol_core.collections.samples import samples_folder
from lol_core.experiments import NAMES, OF_PAPER
from lol_core.experiments.result import PAPER, command
from ui import work
from ui.frame import frame_or_nothing, need
from ui.jobs import running
from ui.keys import key
from ui.progress import follow
from ui.results import kept_results, show_counts, show_result, title_of
from ui.state import kept, session

frame_or_nothing("Experiments")
state, results = session(), kept_results(NAMES)
st.markdown(
    f"The tables and figures of [*Learning on LoRAs*]({PAPER}), measured on the sample zoos. Those zoos are smaller"
    " than the paper's and made of other models, so what can be compared is what holds, not the figures. Below the"
    " paper's stand questions of our own."
)
show_counts(results, OF_PAPER)
linked = st.query_params.get(key("experiment"), title_of(NAMES[0]))
if linked not in map(title_of, NAMES):
    if (name := linked.lower().replace(" ", "")) in NAMES:  # as the command line calls it
        st.query_params[key("experiment")] = title_of(name)
        st.rerun()  # a widget takes its value from the URL as it was when the run began
    st.warning(f"There is no experiment called {linked}. All that there are can be chosen below.")
chosen = st.selectbox("Experiment", NAMES, format_func=title_of, key=key("experiment"), bind="query-params")
again = results[chosen].command if chosen in results else command(chosen)
left, right = st.columns([3, 1], vertical_alignment="center")
left.code(again, language="bash")
if right.button(
    "Run it small",
    icon=":material/play_arrow:",
    key=key("run_small"),
    width="stretch",
    disabled=running(state.experiment),
    help="A few LoRAs, one seed, two epochs, in seconds: shows how it runs. The command beside it runs it in full.",
):
    state.experiment = work.run_small(chosen, samples_folder(), kept() / "experiments")
    st.rerun()
if (job := state.experiment) is not None:
    follow(job, "stop_experiment")
    if job.result is not None:
        name = f"small_{job.subject}"
        with st.expander(job.result.title, icon=":material/science:", expanded=job.subject == chosen, key=key(name)):
            show_result(job.result, "small")

need(
    chosen in results,
    f"{title_of(chosen)} has not been run in full. Run `{again}` in the program's folder; it takes from minutes to"
    " hours and can be stopped.",
)
st.subheader(results[chosen].title)
show_result(results[chosen], chosen)
st.caption(
    f"{counted(len(results), 'experiment')} in `docs/results/`, each with its table, its figure and its settings;"
    " `docs/results.md` has all of them on one page."
)
