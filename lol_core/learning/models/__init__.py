"""LoL models: the paper's five, those of others, our own, and yours."""

from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.models.registry import MODELS, find_model, load_all, make_model, register

__all__ = ["MODELS", "LoLModel", "ModelConfig", "find_model", "make_model", "register"]

load_all()
