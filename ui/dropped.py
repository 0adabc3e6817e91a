"""LoRA files dropped on a page: read and forgotten, not stored."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from lol_core.collections.folder import load_file
from lol_core.core.lora import LoRA
from lol_core.errors import LoLError
from ui.access import access
from ui.keys import key


def dropped_loras() -> dict[str, LoRA]:
    """File name → LoRA of what was dropped; for what cannot be read the reason is shown."""
    limit = access().limits.upload_mb
    files = st.file_uploader(
        "Drop a LoRA file; for PEFT its adapter_config.json beside it",
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
            (Path(folder) / Path(file.name).name).write_bytes(file.getvalue())
        weights = [path for path in sorted(Path(folder).iterdir()) if path.suffix != ".json"]
        for path in weights:
            try:
                place = Path(folder) if path.name.startswith("adapter_model") else path
                loras[path.name] = load_file(place, path.name)
            except LoLError as error:
                reason = access().text(str(error).replace(f"{folder}/", ""))
                st.error(reason, icon=":material/broken_image:")
    if files and not weights:
        st.warning("There is no weights file among these. Drop the .safetensors file as well.")
    return loras
