"""The models that experiments compare."""

from __future__ import annotations

from lol_core.learning.models import MODELS, LoLModel

FIVE: dict[str, type[LoLModel]] = {name: MODELS[name] for name in ("mlp", "o_align", "svd", "dense", "gl_net")}
"""Those of the paper."""
PUBLISHED: dict[str, type[LoLModel]] = {
    name: MODELS[name] for name in ("dsire", "spectral", "w2t", "probex", "mvprobe")
}
"""Those of others, as published. DSiRe and ProbeX are no younger than the paper."""
OURS: dict[str, type[LoLModel]] = {name: MODELS[name] for name in ("tucker", "two_orders")}
COMPARED = FIVE | PUBLISHED | OURS
