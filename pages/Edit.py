"""A LoRA changed towards a wish, or several merged into one: pictures before and after, what the model and a judge say,
how far ΔW moved and in which layers.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lol_core.errors import LoLError
from lol_core.formats.writing import holding
from lol_core.insight.generation import drawable_form
from lol_core.insight.ranking import held_out
from lol_core.learning.known import UNLIKE
from ui import work
from ui.choice import choose_lora, look_at_link
from ui.editing import HELP, METHODS, choose_goal, editable, moved_in_all, show_way
from ui.frame import frame, need, needed, page_link
from ui.jobs import running, sentence
from ui.judged import show_drawn
from ui.keys import key
from ui.merging import merge_several
from ui.metadata import show_notes
from ui.plain import plain
from ui.progress import follow
from ui.saving import show_download
from ui.state import MAX_EDITED, edits_of, known_base, load_lora, loaded_checkpoints, session
from ui.work import Wish

ONE, SEVERAL = "Edit one", "Merge several"
source = frame("Edit", loras=True)
state = session()
mode = st.segmented_control(
    "What to make", [ONE, SEVERAL], default=ONE, key=key("mode"), bind="query-params", required=True
)
if mode == SEVERAL:
    merge_several(source)
    st.stop()
models = editable(loaded_checkpoints(source))
if not models:
    st.info("An edit follows a model that reads LoRAs, and none that is GL-invariant knows this collection yet.")
    page_link("pages/Train.py", "Train one", ":material/model_training:")
    st.stop()
look_at_link("model", "model", models)
a, b = st.columns(2)
model = models[a.selectbox("Model", list(models), key=key("model"), bind="query-params")]
unseen = held_out(model, source, source.ids)
known = set(source.ids) - set(unseen)
first = [*unseen, *(id for id in source.ids if id in known)]
text = f"Those that the model has not seen in training come first. The edits of {MAX_EDITED} LoRAs are kept meanwhile."
id = needed(choose_lora(source, first, "lora", "LoRA", place=b, help=text), "Choose a LoRA.")
try:
    original = load_lora(source, id)
except LoLError as error:
    st.error(sentence(error), icon=":material/broken_image:")
    st.stop()
try:
    reading = model.predict([original])[0]
except LoLError as error:
    st.warning(f"{plain(model.title)} cannot read this LoRA: {sentence(error)}", icon=":material/broken_image:")
    st.stop()
place = (source.fingerprint, id)
edits = edits_of(place)
lora = edits[-1][1].edit.lora if edits else original

with st.container(border=True):
    a, b, c = st.columns(3)
    with a:
        goal = choose_goal(model, reading)
    methods = {words: one for one, words in METHODS.items()}
    look_at_link("method", "method", methods)
    method = methods[b.selectbox("Method", list(methods), key=key("method"), bind="query-params", help=HELP)]
    text = "How far ΔW moves, as a share of ‖ΔW‖."
    size = c.slider("How much", 0.05, 1.5, 0.5, 0.05, key=key("size"), bind="query-params", help=text)
    busy = running(state.editing)
    with st.container(horizontal=True):
        label = "Edit further" if edits else "Edit"
        pressed = st.button(label, type="primary", icon=":material/edit:", disabled=busy, key=key("edit"))
        undo = bool(edits) and st.button("Undo", icon=":material/undo:", disabled=busy, key=key("undo"))
if undo:
    edits.pop()
    st.rerun()
drawable = bool(known_base(source)) or drawable_form(original) is not None
if pressed:
    wish = Wish(place, len(edits), goal, method, size)
    members = state.members.get((source.fingerprint, model.created))
    editor = state.editors.get(model.created)
    state.editing = work.edit_lora(model, source, lora, wish, members=members, editor=editor, drawable=drawable)
    st.rerun()
if state.editing is not None:
    follow(state.editing, "stop")
    if not busy and state.editing.result is not None:
        wish, made = state.editing.subject, state.editing.result
        if made.members is not None:
            state.members = {(source.fingerprint, model.created): made.members}
        if made.editor is not None:
            state.editors[made.editor.made] = made.editor
        began = edits_of(wish.lora)  # of another LoRA, where one has looked on meanwhile
        if wish.number == len(began):
            began.append((wish, made))
        state.editing = None
        st.rerun()
need(edits, "Choose a change and press **Edit**. The LoRA in the collection stays as it is.")

wish, made = edits[-1]
last = len(made.edit.loras) - 1
text = "0 is before this edit."
step = st.slider(
    "Walk along the edit",
    0,
    last,
    made.edit.reached,
    key=key(f"step {made.key}"),
    help=text,
    persist_state="session",
)
before, now = (float(made.edit.goal.read(made.edit.predictions[[k]])[0]) for k in (0, step))
since = ""
if len(edits) > 1:
    whole = moved_in_all(made.key, step, original, made.edit.loras[step])
    since = f" by this edit, and by **{whole:.0%}** from the LoRA of the collection"
st.markdown(
    f"**{wish.goal.name}**, {wish.method}: the model reads **{wish.goal.reading} = {now:.3g}** (before: {before:.3g});"
    f" ΔW has moved by **{made.edit.moved[step]:.0%}** of ‖ΔW‖{since}."
)
if made.outside[step]:
    st.caption(f"To the model what this step gives is {UNLIKE}.")
show_notes(original.notes)
if not made.edit.met:
    st.caption(
        f"The wish {plain(wish.goal.name)} is not reached at the end of this edit. Edit further, or undo it and choose"
        " another method or a larger **How much**."
    )
if drawable:
    files = {"Before": edits[0][1].file(0), f"Step {step} of {last}": made.file(step), "Base model": None}
    show_drawn(source, files, [id])
show_way(wish, made, step)
st.subheader("Save")
name = f"{Path(source.names[id]).name}-{'-'.join(one.goal.name for one, _ in edits)}-{step}"
show_download(made.edit.loras[step], f"{made.key}-{step}", name, given=holding(original))
