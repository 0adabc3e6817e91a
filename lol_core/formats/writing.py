"""Writing a LoRA back as a file that other programs load: PEFT, diffusers, kohya or MLX form."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from math import inf, nextafter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from lol_core.core.geometry import distance, norm
from lol_core.core.header import Kind
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.naming import FLATTENED, KOHYA_PREFIXES, component, kohya_names
from lol_core.errors import LoRAFormatError
from lol_core.formats.base_models import suggest_base_model
from lol_core.formats.diffusers import COMPONENTS

FORMS = ("PEFT", "diffusers", "kohya", "MLX")
FOLDERS = {"PEFT": "adapter_model.safetensors", "MLX": "adapters.safetensors"}
"""Forms that are a folder with adapter_config.json, and how they name the weights in it; the others are one file."""
TASKS = {"CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"}
"""PEFT's tasks whose models have no head beside the base model's, which an adapter would have to bring along."""
HELD = 2**-8
"""Of ‖ΔW‖, what may be lost to numbers too small for a dtype: what bfloat16's digits leave out of any number."""
NAMED_AS_DIFFUSERS_DOES = ("LTX-Video", "LTX-2")
"""Models whose own names are those of diffusers: programs that read kohya's form know them under its usual prefix."""
LONGEST_NAME = 200
"""Bytes of a file's name before its ending; file systems take 255 with it."""
_NO_NAME = re.compile(r'[\\/:*?"<>|\x00-\x1f]+')
_BLOCK = re.compile(r"(?:^|.*\.)layers\.\d+\.(.+)")
_UNET = re.compile(r"\b(down_blocks|up_blocks|mid_block)\b")


def names_in(form: str, lora: LoRA) -> dict[str, str]:
    """Module name → the name it has in this form. Raises LoRAFormatError when it has none, or its update cannot be
    written so.
    """
    if form not in FORMS:
        raise LoRAFormatError(f"No form {form!r}. Choose {', '.join(FORMS)}.")
    for layer in lora.layers:
        if layer.factor_shapes:
            raise LoRAFormatError(
                f"{layer.name} is a Kronecker product (LoKr), which none of {', '.join(FORMS)} holds as a pair of"
                " factors."
            )
        if layer.kind == Kind.EXPERTS:
            raise LoRAFormatError(f"{layer.name} has a pair for each expert, which none of {', '.join(FORMS)} holds.")
        if form != "PEFT" and layer.kind == Kind.EMBEDDING:
            raise LoRAFormatError(f"{layer.name} adapts an embedding; only PEFT's form has a place for it.")
        if form == "diffusers" and layer.magnitude is not None:
            raise LoRAFormatError(f"{layer.name} has a DoRA magnitude. Choose PEFT or kohya.")
        if form == "PEFT" and layer.magnitude_axis not in (None, 1 if layer.kind == Kind.EMBEDDING else 0):
            raise LoRAFormatError(
                f"{layer.name} has a DoRA magnitude along the other axis than PEFT's. Choose kohya, if it is listed."
            )
    if form == "MLX":
        return _mlx_names(lora)
    if form == "PEFT" and len({layer.magnitude is None for layer in lora.layers}) > 1:
        raise LoRAFormatError("Some modules have a DoRA magnitude and some have none; PEFT's form has one setting.")
    if form == "kohya":
        names = called_by_kohya(lora)
        if foreign := [own for own, name in names.items() if not FLATTENED.match(name)]:
            raise LoRAFormatError(f"{foreign[0]} is no module that kohya's form has a name for. Choose another form.")
    elif all(FLATTENED.match(name) for name in lora.names):
        raise LoRAFormatError(
            f"Module names such as {lora.names[0]} are flattened with underscores, which cannot be undone with"
            " certainty. Choose kohya."
        )
    elif form == "diffusers":
        names = {name: _of_pipeline(name) for name in lora.names}
    else:
        components = {_component_of(name) for name in lora.names} - {""}
        if lora.dialect == "PEFT":  # whose files name no component: it is the model's own name there
            components -= {"transformer"}
        if len(components) > 1:
            raise LoRAFormatError(
                f"It adapts {' and '.join(sorted(components))}; a PEFT adapter belongs to one model. Choose diffusers"
                " or kohya."
            )
        names = {name: name.removeprefix(f"{next(iter(components), '')}.") for name in lora.names}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        first, second, *_ = (own for own, name in names.items() if name == twice[0])
        raise LoRAFormatError(f"{first} and {second} are both called {twice[0]} in {form}'s form.")
    return names


def called_by_kohya(lora: LoRA) -> dict[str, str]:
    """Module name → what kohya's programs call it; of a module that they have no name for, its own."""
    names = dict(zip(lora.names, kohya_names(lora.names), strict=True))
    if list(names) != list(names.values()) and suggest_base_model(lora) in NAMED_AS_DIFFUSERS_DOES:
        return {own: name.replace("lora_transformer_", "lora_unet_", 1) for own, name in names.items()}
    return names


def _component_of(name: str) -> str:
    """The component of a pipeline that a name begins with; empty without one."""
    named = name.partition(".")[0]
    return named if named == component(name) or named in set(COMPONENTS) - KOHYA_PREFIXES.keys() else ""


def _of_pipeline(name: str) -> str:
    """The name that a module has in diffusers' form. Raises LoRAFormatError for one of no diffusion model."""
    of = component(name) or ("unet" if _UNET.search(name) else "")
    if _component_of(name):
        return name
    if not of:
        raise LoRAFormatError(f"{name} is no module of a diffusion model. Choose PEFT.")
    return f"{of}.{name}"


def _mlx_names(lora: LoRA) -> dict[str, str]:
    """Names as they are: mlx-lm goes by those of the model's own layers. Raises as `names_in`."""
    for layer in lora.layers:
        if layer.magnitude is not None or len(layer.weight_shape) > 2 or layer.kind not in (Kind.LINEAR, Kind.BLOCKS):
            raise LoRAFormatError(f"{layer.name} is no plain pair of a linear layer. Choose PEFT or kohya.")
        if not _BLOCK.match(layer.name):
            raise LoRAFormatError(f"{layer.name} is in no block of a language model, which is what MLX's form adapts.")
    return {name: name for name in lora.names}


def forms_of(lora: LoRA) -> list[str]:
    """The forms this LoRA can be written in."""
    possible = []
    for form in FORMS:
        try:
            names_in(form, lora)
        except LoRAFormatError:
            continue
        possible.append(form)
    return possible


def holding(*loras: LoRA) -> torch.dtype:
    """The type of float16, bfloat16 and float32 that holds the numbers of their factors: float16 those of 8 bits."""
    stored = {slot.dtype for lora in loras for layer in lora.layers for slot in layer.parametrisation.slots.values()}
    wider = {dtype for dtype in stored if dtype.itemsize > 1}
    return wider.pop() if wider in ({torch.float16}, {torch.bfloat16}) else torch.float32 if wider else torch.float16


def write(lora: LoRA, path: Path | str, form: str, dtype: torch.dtype = torch.float16) -> None:
    """Write a LoRA: as a folder with weights and adapter_config.json (PEFT, MLX), or as one file.

    The scale goes where the form keeps it, exactly: lora_alpha and alpha_pattern (PEFT), an alpha beside each module
    (kohya), the configuration's scale where all modules share one (MLX); or into U, rounded to the dtype (diffusers,
    whose files need no alpha, and MLX). MLX has one rank, to which zeros fill up. Factors are written bit for bit
    where the dtype holds them. Raises LoRAFormatError when the form cannot hold it, a number is too large
    for the dtype, or so many are too small that ΔW would be another.
    """
    path, names = Path(path), names_in(form, lora)
    tensors: dict[str, Tensor] = {}
    scale = lora.layers[0].scale if len({layer.scale for layer in lora.layers}) == 1 else 1.0
    for layer in lora.layers:
        name = names[layer.name]
        made = (
            _mlx(layer, name, scale, max(lora.ranks), dtype=dtype)
            if form == "MLX"
            else _tensors(layer, name, form, dtype)
        )
        tensors |= made
    for key, tensor in tensors.items():
        tensors[key] = tensor.contiguous().clone()
        if not tensor.isfinite().all():
            raise LoRAFormatError(f"{key} does not fit into {str(dtype).removeprefix('torch.')}. Choose a wider type.")
    _check_small(lora, form, scale, dtype)
    metadata = {"format": "pt"} | ({"base_model": lora.base_model} if lora.base_model else {})
    if form in FOLDERS:
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / FOLDERS[form], metadata=metadata)
        config = _peft_config(lora, names) if form == "PEFT" else _mlx_config(lora, scale)
        (path / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=metadata)


def _check_small(lora: LoRA, form: str, scale: float, dtype: torch.dtype) -> None:
    """Raises LoRAFormatError where more than HELD of ΔW is lost to numbers below those that the dtype holds in full.

    Each is off by at most half of the least number, which tells of most factors that they lose too little.
    """
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    lost = 0.0
    for layer in lora.layers:
        U, V = _folded(layer, form, scale), layer.V
        if all(float(f.float().norm()) * HELD >= least * f.numel() ** 0.5 for f in (U, V) if f.dtype != dtype):
            continue
        rest = layer.scale if U is layer.U else scale if form == "MLX" else 1.0
        exact = LoRALayer.pair(layer.name, U, V, scale=rest)
        lost += distance(exact, LoRALayer.pair(layer.name, U.to(dtype), V.to(dtype), scale=rest)) ** 2
    if lost and lost > HELD**2 * sum(norm(layer) ** 2 for layer in lora.layers):
        raise LoRAFormatError(
            f"Its factors hold numbers too small for {str(dtype).removeprefix('torch.')}, without which its update"
            " would be another. Choose a wider type."
        )


def _folded(layer: LoRALayer, form: str, scale: float) -> Tensor:
    """U with what the form has no place for: the scale (diffusers), what it differs from `scale` (MLX)."""
    own = layer.scale if form == "diffusers" else layer.scale / scale if form == "MLX" and layer.scale != scale else 1.0
    return layer.U if own == 1.0 else layer.U.float() * own


def packed(lora: LoRA, name: str, form: str, dtype: torch.dtype = torch.float16) -> tuple[str, bytes]:
    """File name and content of what `write` writes; a folder as a zip file. name: signs that cannot stand in a file's
    name become dashes, and what is too long for one is cut. Raises as `write` does.
    """
    name = _NO_NAME.sub("-", name).encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .") or "lora"
    with TemporaryDirectory() as folder:
        if form not in FOLDERS:
            path = Path(folder) / f"{name}.safetensors"
            write(lora, path, form, dtype)
            return path.name, path.read_bytes()
        write(lora, Path(folder) / name, form, dtype)
        archive = shutil.make_archive(str(Path(folder) / "packed"), "zip", folder, name)
        return f"{name}.zip", Path(archive).read_bytes()


def _tensors(layer: LoRALayer, name: str, form: str, dtype: torch.dtype) -> dict[str, Tensor]:
    up, down = _folded(layer, form, 1.0).to(dtype), layer.V.T.to(dtype)
    if layer.kind == Kind.EMBEDDING:  # stored as (r, tokens) and (dim, r), see assembly._embedding
        embedding = {
            "lora_embedding_A": layer.U.T,
            "lora_embedding_B": layer.V,
            "lora_magnitude_vector": layer.magnitude,
        }
        return {
            f"base_model.model.{name}.{part}": tensor.to(dtype)
            for part, tensor in embedding.items()
            if tensor is not None
        }
    if len(layer.weight_shape) > 2:
        up, down = up[..., *[None] * (len(layer.weight_shape) - 2)], down.reshape(layer.rank, *layer.weight_shape[1:])
    if form == "kohya":
        tensors = {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": _alpha_tensor(layer),
        }
    else:
        prefix = "base_model.model." if form == "PEFT" else ""
        tensors = {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    if layer.magnitude is not None:
        axis, dimensions = layer.magnitude_axis or 0, len(layer.weight_shape)
        if form == "PEFT":  # flat, or along the channels of an output: (1, out, 1, …)
            axis, dimensions = (0, 1) if dimensions == 2 else (1, dimensions)
        key = f"base_model.model.{name}.lora_magnitude_vector" if form == "PEFT" else f"{name}.dora_scale"
        shape = [-1 if d == axis else 1 for d in range(dimensions)]
        tensors[key] = layer.magnitude.reshape(shape).to(dtype)
    return tensors


def _mlx(layer: LoRALayer, name: str, scale: float, rank: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """lora_a (m, rank) and lora_b (rank, n); what the layer's scale differs from `scale` goes into lora_b."""
    filled = [pad(factor, (0, rank - layer.rank)).to(dtype) for factor in (layer.V, _folded(layer, "MLX", scale))]
    return {f"{name}.lora_a": filled[0], f"{name}.lora_b": filled[1].T}


def _mlx_config(lora: LoRA, scale: float) -> dict[str, Any]:
    """num_layers −1: mlx-lm takes all blocks; keys: where in a block."""
    keys = sorted({found[1] for name in lora.names if (found := _BLOCK.match(name))})
    parameters = {"rank": max(lora.ranks), "scale": scale, "dropout": 0.0, "keys": keys}
    return {"model": lora.base_model, "fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}


def _alpha(layer: LoRALayer) -> float:
    """An alpha that gives the scale back when it is divided by the rank: exactly where one does, as a file's own."""
    product = layer.scale * layer.rank
    candidates = (layer.alpha, product, nextafter(product, inf), nextafter(product, -inf))
    exact = (alpha for alpha in candidates if alpha is not None and alpha / layer.rank == layer.scale)
    return next(exact, product)


def _alpha_tensor(layer: LoRALayer) -> Tensor:
    """As float32, as kohya's trainer writes it, unless only float64 is exact."""
    alpha = torch.tensor(_alpha(layer), dtype=torch.float64)
    return alpha.float() if float(alpha.float()) / layer.rank == layer.scale else alpha


def _peft_config(lora: LoRA, names: dict[str, str]) -> dict[str, Any]:
    ranks = {names[layer.name]: layer.rank for layer in lora.layers}
    alphas = {names[layer.name]: _alpha(layer) for layer in lora.layers}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": lora.base_model,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(names.values()),
        "task_type": task if isinstance(task := lora.metadata.get("task_type"), str) and task in TASKS else None,
        "use_dora": any(layer.magnitude is not None for layer in lora.layers),
        "inference_mode": True,
    }
