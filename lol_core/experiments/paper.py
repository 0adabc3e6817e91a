"""The models that experiments compare."""

from __future__ import annotations

from lol_core.learning.models import MODELS, LoLModel

FIVE: dict[str, type[LoLModel]] = {name: MODELS[name] for name in ("mlp", "o_align", "svd", "dense", "gl_net")}
"""Those of the paper."""
SINCE: dict[str, type[LoLModel]] = {name: MODELS[name] for name in ("dsire", "spectral", "w2t", "mvprobe", "tucker")}
"""Those of others, and our own."""
COMPARED = FIVE | SINCE
