"""LoL models by name: the paper's five, those others have published since, and our own."""

from __future__ import annotations

from lol_core.core.batch import WeightSpec
from lol_core.errors import ModelError
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.dense import Dense
from lol_core.learning.models.dsire import DSiRe
from lol_core.learning.models.gl_net import GLNet
from lol_core.learning.models.mlp import MLP
from lol_core.learning.models.mvprobe import MVProbe
from lol_core.learning.models.o_align import OAlign
from lol_core.learning.models.spectral import Spectral
from lol_core.learning.models.svd import SVD
from lol_core.learning.models.tucker import TuckerNet
from lol_core.learning.models.w2t import W2T

__all__ = [
    "FIVE",
    "MLP",
    "MODELS",
    "NEWER",
    "SVD",
    "W2T",
    "DSiRe",
    "Dense",
    "GLNet",
    "LoLModel",
    "MVProbe",
    "ModelConfig",
    "OAlign",
    "Spectral",
    "TuckerNet",
    "make_model",
]

FIVE: dict[str, type[LoLModel]] = {"mlp": MLP, "o_align": OAlign, "svd": SVD, "dense": Dense, "gl_net": GLNet}
NEWER: dict[str, type[LoLModel]] = {
    "dsire": DSiRe,
    "spectral": Spectral,
    "w2t": W2T,
    "mvprobe": MVProbe,
    "tucker": TuckerNet,
}
MODELS = FIVE | NEWER


def make_model(name: str, spec: WeightSpec, outputs: int, config: ModelConfig | None = None) -> LoLModel:
    """Build a LoL model. Raises ModelError when the name is unknown or the ranks do not suit it. What memory it takes
    says `learning.memory.memory_needed`.
    """
    if name not in MODELS:
        raise ModelError(f"There is no model {name!r}. Choose one of {', '.join(MODELS)}.")
    return MODELS[name](spec, outputs, config or ModelConfig())
