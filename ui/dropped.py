"""LoRA files dropped on a page: read and forgotten, not stored."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from lol_core.collections.folder import load_file
from lol_core.collections.opening import without_loras
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError, ZooError
from ui.access import access
from ui.keys import key
from ui.metadata import show_notes

MOST = 20
"""LoRAs of one zip file."""


def dropped_loras() -> dict[str, LoRA]:
    """File name → LoRA of what was dropped. Shows why others cannot be read, and what is uncertain of those."""
    limit = access().limits.upload_mb
    files = st.file_uploader(
        "Drop a LoRA file, with its adapter_config.json for PEFT, or a zip file of LoRAs",
        accept_multiple_files=True,
        key=key("dropped"),
        help="It is read and forgotten, not stored.",
    )
    if limit is not None and sum(file.size for file in files) > limit * 2**20:
        st.error(f"These files have more than {limit} MB together, which this server does not take. Remove some.")
        return {}
    loras: dict[str, LoRA] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            path, content = Path(folder) / Path(file.name).name, file.getvalue()
            if path.exists() and path.read_bytes() != content:
                st.error(
                    f"Two files are called {path.name}, and which belongs to which cannot be told. Drop one LoRA at a"
                    " time, or a zip file of their folders."
                )
                return {}
            path.write_bytes(content)
        weights = [path for path in sorted(Path(folder).iterdir()) if path.suffix != ".json"]
        for path in weights:
            try:
                loras |= _of_zip(path, limit) if path.suffix.lower() == ".zip" else {path.name: _of_file(path)}
            except LoLError as error:
                _refuse(str(error).replace(f"{folder}/", ""))
    for name, lora in loras.items():
        show_notes(lora.notes, name)
    if files and not weights:
        st.warning("There is no weights file among these. Drop the .safetensors file as well.")
    return loras


def _of_file(path: Path) -> LoRA:
    return load_file(path.parent if path.name.startswith("adapter_model") else path, path.name)


def _of_zip(path: Path, limit: int | None) -> dict[str, LoRA]:
    """Name → LoRA of a zip file, such as this program saves one in PEFT's form. limit: MB that they take unpacked.
    Raises ZooError for what holds none, or too much to be looked at here.
    """
    source = access().dropped(path)
    if not len(source):
        raise ZooError(without_loras(source))
    if len(source) > MOST:
        raise ZooError(f"{path.name}: {len(source):,} LoRAs, of which at most {MOST} are read here. Drop some of them.")
    if limit is not None and sum(entry.size for entry in source.entries) > limit * 2**20:
        raise ZooError(f"{path.name}: unpacked more than {limit} MB, which this server does not take.")
    for entry in source.refused:
        _refuse(f"{path.name}/{entry.path}: {entry.reason}")
    return {f"{path.name}/{source.names[id]}": source.load(id) for id in source.ids}


def _refuse(reason: str) -> None:
    st.error(access().text(reason), icon=":material/broken_image:")
