"""LoL models by name: those of this package, and any that a file outside registers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from lol_core.collections.names import user_path
from lol_core.core.batch import WeightSpec
from lol_core.core.groups import Group
from lol_core.core.making import MAKING
from lol_core.errors import ModelError
from lol_core.learning.models.base import LoLModel, ModelConfig
from lol_core.learning.own import tell_errors

PACKAGED = (
    *("mlp", "o_align", "svd", "dense", "gl_net", "dsire", "spectral", "w2t", "mvprobe", "tucker", "two_orders"),
    *("nearest_spectra", "spectral_sizes", "triplets", "views"),
)
"""Modules of this package that hold a model, in the order in which models are shown."""
VARIABLE = "LOL_MODELS"
"""Environment variable with files (or modules) that register further models, separated as in PATH."""

_ASKED = (
    *("__init__", "n_features", "make_head", "prepare", "memorize"),
    *("normalized", "features", "described", "embed", "forward", "stages"),
)
"""Methods that a model may define, and that are called in its stead."""

MODELS: dict[str, type[LoLModel]] = {}

Model = TypeVar("Model", bound=type[LoLModel])


def register(name: str) -> Callable[[Model], Model]:
    """Decorator that makes a model known by a name, under which commands, pages and checkpoints find it. Raises
    ModelError when another one has it, or when the class does not say what a model must.
    """

    def add(model: Model) -> Model:
        if problems := _missing(model):
            raise ModelError(f"The model {name!r} {' and '.join(problems)}.")
        known = MODELS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
            raise ModelError(f"There is a model {name!r} already ({known.title}). Register yours by another name.")
        tell_errors(model, _ASKED, model.title, ModelError)
        MODELS[name] = model
        return model

    return add


def _missing(model: type) -> list[str]:
    """What a class lacks to be a model."""
    if not issubclass(model, LoLModel):
        return [f"must be a subclass of LoLModel; found {model.__name__}"]
    problems = [f"must set `{name}`" for name in ("title", "symmetry", "any_rank") if not hasattr(model, name)]
    problems += [
        f"must define `{name}`"
        for name in ("n_features", "features")
        if getattr(model, name) is getattr(LoLModel, name)
    ]
    promised = getattr(model, "symmetry", None)
    if promised is not None and not isinstance(promised, Group):
        problems.append(f"must promise a Group of lol_core.core.groups, or None; found {promised!r}")
    return problems


def load(place: str) -> None:
    """Run a file, or import a module, that registers models. Raises ModelError when there is none or it fails."""
    path = user_path(place)
    try:
        if path.suffix == ".py":
            name = f"lol_models_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ModelError(f"no such file. {VARIABLE} names files that register models.")
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            importlib.import_module(place)
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
    except Exception as error:
        raise ModelError(f"{place}: this file of models cannot be loaded ({type(error).__name__}: {error}).") from error


def load_all() -> None:
    """The models of this package, of installed packages (entry points "lol_core.models") and of LOL_MODELS."""
    for name in PACKAGED:
        importlib.import_module(f"lol_core.learning.models.{name}")
    for entry in entry_points(group="lol_core.models"):
        load(entry.value)
    for place in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load(place)


def find_model(name: str) -> type[LoLModel]:
    """The class of a name. Raises ModelError when there is none."""
    if name not in MODELS:
        raise ModelError(
            f"There is no model {name!r}. Choose one of {', '.join(MODELS)}; one of your own is registered by a file"
            f" that {VARIABLE} names."
        )
    return MODELS[name]


def make_model(name: str, spec: WeightSpec, outputs: int, config: ModelConfig | None = None) -> LoLModel:
    """Build a LoL model; its usual configuration when None. Raises ModelError when the name is unknown, or the ranks or
    the configuration do not suit it. What memory it takes says `learning.memory.memory_needed`.
    """
    kind = find_model(name)
    with MAKING:
        return kind(spec, outputs, kind.configured(config))
