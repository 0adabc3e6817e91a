"""The paper's five LoL models by name."""

from __future__ import annotations

from lol_core.batches import WeightSpec
from lol_core.errors import ModelError
from lol_core.models.base import LoLModel, ModelConfig
from lol_core.models.dense import Dense
from lol_core.models.gl_net import GLNet
from lol_core.models.mlp import MLP
from lol_core.models.o_align import OAlign
from lol_core.models.svd import SVD

__all__ = ["MLP", "MODELS", "SVD", "Dense", "GLNet", "LoLModel", "ModelConfig", "OAlign", "make_model"]

MODELS: dict[str, type[LoLModel]] = {"mlp": MLP, "o_align": OAlign, "svd": SVD, "dense": Dense, "gl_net": GLNet}


def make_model(name: str, spec: WeightSpec, outputs: int, config: ModelConfig | None = None) -> LoLModel:
    """Build a LoL model. Raises ModelError when the name is unknown, the ranks do not suit it, or it would not fit into memory."""
    if name not in MODELS:
        raise ModelError(f"There is no model {name!r}. Choose one of {', '.join(MODELS)}.")
    return MODELS[name](spec, outputs, config or ModelConfig())
