"""The settings of the authors' scripts, model by model (github.com/moeputt/LoL, 541d6b3), for the questions that they
ask too.

Images: AdamW without weight decay, constant rate, one hidden layer, no dropout, inputs as they are, the last epoch.
Language: weight decay 0.01, batches of 32, dropout 0.1 (in GL-net also of equivariant rows), the
epoch with the lowest validation loss; `NOT_OURS` says in what their heads differ. Epochs are theirs,
so that a zoo of a quarter of the LoRAs gives a quarter of the steps. Not stated for data-set size; for language
neither Dense's rate (1e-3 here) nor that of any but the accuracy, whose rates are taken for all three.
"""

from __future__ import annotations

from typing import Any

from lol_core.experiments.comparison import least_clear, summary
from lol_core.experiments.paper import FIVE
from lol_core.experiments.result import Finding, verdict, with_interval
from lol_core.experiments.search import Setting, Variant
from lol_core.experiments.trials import Trials
from lol_core.learning.config import Keep
from lol_core.learning.models import MODELS
from lol_core.learning.models.layers import Start

_GL_NET: dict[str, Any] = {"start": Start.NORMAL.value}


def _image(epochs: int, width: int, batch_size: int, rate: float = 1e-3, **options: Any) -> Setting:
    shape = {"epochs": epochs, "width": width, "batch_size": batch_size, "depth": 1, "dropout": 0.0, "patience": 0}
    return Setting(rate, tuple((shape | {"keep": Keep.LAST.value} | options).items()))


def _language(rate: float, width: int = 256, depth: int = 2, batch_size: int = 32, **options: Any) -> Setting:
    shape = {"epochs": 60, "width": width, "batch_size": batch_size, "depth": depth, "dropout": 0.1, "patience": 0}
    return Setting(rate, tuple((shape | {"weight_decay": 1e-2} | options).items()))


ATTRIBUTES = {
    "mlp": _image(1, 1, 100, 1e-2),
    "o_align": _image(4, 256, 100),
    "svd": _image(30, 256, 100),
    "dense": _image(2, 16, 8),
    "gl_net": _image(12, 16, 8, equivariant_width=64, **_GL_NET),
}
CLIP_SCORE = {
    "mlp": _image(10, 128, 100),
    "o_align": _image(10, 256, 100),
    "svd": _image(200, 16, 100),
    "dense": _image(1, 16, 8),
    "gl_net": _image(3, 64, 8, equivariant_width=16, mean_products=True, **_GL_NET),
}
CLASSES = {
    "mlp": _image(5, 1, 8, 1e-2),
    "o_align": _image(4, 256, 8),
    "svd": _image(30, 256, 8),
    "dense": _image(2, 16, 8),
    "gl_net": _image(3, 128, 8, equivariant_width=64, **_GL_NET),
}
LANGUAGE = {
    "mlp": _language(5e-5),
    "o_align": _language(1e-4),
    "svd": _language(5e-4),
    "dense": _language(1e-3, width=16, batch_size=8),
    "gl_net": _language(1e-3, depth=1, equivariant_width=16, equivariant_layers=2, equivariant_dropout=0.1, **_GL_NET),
}
NOT_OURS = (
    "The authors' MLP, O-Align and SVD of this table have LayerNorm in both hidden layers, ours in the first; their"
    " GL-net drops products before its head too."
)


def variants(settings: dict[str, Setting]) -> tuple[Variant, ...]:
    """Each model as the authors set it, beside the searched one."""
    return tuple(
        Variant(model, named(model), f"{MODELS[model].title}, authors' setting", fixed=setting)
        for model, setting in settings.items()
    )


def named(model: str) -> str:
    """How that variant of a model is called."""
    return f"{model}, authors' setting"


def best_at_their_settings(trials: Trials, model: str, words: str) -> Finding:
    """Whether the five as their authors set them stand in the paper's order: a model is the best of them by accuracy.
    words: what it does best.
    """
    accuracy = summary(trials, "accuracy")["mean"]
    rival, gap = least_clear(trials, "accuracy", named(model), [*map(named, FIVE)])
    own, its = (trials.variants[name].title for name in (named(model), rival))
    return Finding(
        f"With each as its authors set it, {MODELS[model].title} {words} best of the five.",
        verdict(gap),
        f"accuracy {accuracy[own]:.3f}; {trials.variants[rival].title}, which decides it, has {accuracy[its]:.3f}"
        f" (difference {with_interval(gap)}).",
    )
