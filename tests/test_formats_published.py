"""Every published file loads with the module count, rank and scale that its source implies, or is refused with a reason
a person understands.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from lol_core.errors import LoRAFormatError, NotLowRankError
from lol_core.formats import probe, read, suggest_base_model
from tests.conftest import REAL_LORAS

INDEX = REAL_LORAS / "INDEX.tsv"
ROWS = list(csv.DictReader(INDEX.read_text(encoding="utf-8").splitlines(), delimiter="\t")) if INDEX.is_file() else []
REFUSED = ("NEGATIVE", "alpha/dropout_p", "textual inversion", "PROMPT_TUNING")
GOOD = [row for row in ROWS if not any(mark in row["format guess"] for mark in REFUSED)]
BAD = [row for row in ROWS if any(mark in row["format guess"] for mark in REFUSED)]

REASONS = {
    "LFS pointer": "git lfs pull",
    "not a safetensors file": "2 bytes",
    "alpha/dropout_p": "no matrices",
    "textual inversion": "textual inversion",
    "PROMPT_TUNING": "prompt tuning",
}


def test_the_corpus_is_whole(real_loras: Path) -> None:
    assert (len(GOOD), len(BAD)) == (63, 12)


def expected_scale(path: Path, rank: int) -> float:
    """From adapter_config.json read independently of the reader: alpha/r for PEFT, lora_parameters.scale for MLX, else
    1.
    """
    config_path = path.parent / "adapter_config.json"
    config = json.loads(config_path.read_text()) if config_path.is_file() else {}
    if "lora_parameters" in config:
        return float(config["lora_parameters"]["scale"])
    if config.get("enable_lora"):
        rank = config["r"]
    return float(config["lora_alpha"]) / rank if "lora_alpha" in config else 1.0


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row["file"][:60])
def test_a_published_lora_loads(row: dict[str, str], real_loras: Path) -> None:
    path = real_loras / row["file"]
    lora = read(path)
    extra = len(lora.extras)
    assert len(lora.layers) == (int(row["tensors"]) - extra) / 2
    assert lora.ranks == (int(row["rank"]),)
    assert lora.base_model == (row["base model"] or None) or lora.base_model == "sd_1.5"
    for layer in lora.layers:
        assert layer.scale == pytest.approx(expected_scale(path, layer.rank))
        assert layer.U.shape == (layer.n, layer.rank) and layer.V.shape == (layer.m, layer.rank)
    lora.check_finite()
    assert not any(layer.U.requires_grad for layer in lora.layers)


@pytest.mark.parametrize("row", GOOD[::7], ids=lambda row: row["file"][:60])
def test_a_probe_tells_the_same_without_the_weights(row: dict[str, str], real_loras: Path) -> None:
    probed, loaded = probe(real_loras / row["file"]), read(real_loras / row["file"])
    assert [(y.name, y.n, y.m, y.rank, y.alpha, y.scale, y.kind, y.dtype) for y in probed.layers] == [
        (y.name, y.n, y.m, y.rank, y.alpha, y.scale, y.kind, y.dtype) for y in loaded.layers
    ]
    assert all(y.U.is_meta and y.V.is_meta for y in probed.layers)


@pytest.mark.parametrize("row", BAD, ids=lambda row: row["file"][:60])
def test_what_is_no_lora_is_refused_with_a_reason(row: dict[str, str], real_loras: Path) -> None:
    reason = next(text for mark, text in REASONS.items() if mark in row["format guess"])
    with pytest.raises(LoRAFormatError, match=reason):
        read(real_loras / row["file"])


def test_a_header_that_lies_about_its_base_is_contradicted_by_the_shapes(real_loras: Path) -> None:
    lora = probe(real_loras / "leighwoods__public-loras/_history/15578f9/lora.safetensors")
    assert lora.base_model == "sd_1.5" and suggest_base_model(lora) == "Flux"


def test_five_dialects_of_stable_diffusion_share_one_geometry(real_loras: Path) -> None:
    names = [
        "timohavdk__sd-lora/2100-lora.safetensors",
        "timohavdk__sd-lora/new.safetensors",
        "EDiNSL__03-IMVA-GAC/pytorch_lora_weights.bin",
        "ziemdavid10__Image_service_generation/output/adapter_model.safetensors",
        "uralpergin__SD-LoRA-Mensa/_history/7fd0518/lora_cafeteria_output/pytorch_lora_weights.bin",
    ]
    loras = [probe(real_loras / name) for name in names]
    assert {suggest_base_model(lora) for lora in loras} == {"Stable Diffusion 1.x"}
    assert {tuple(sorted((y.n, y.m) for y in lora.layers)) for lora in loras} == {
        tuple(sorted((y.n, y.m) for y in loras[0].layers))
    }


def test_old_merged_linear_is_the_grouped_product_of_its_library(real_loras: Path) -> None:
    """Old PEFT computes conv1d(lora_A, lora_B, groups=e) and spreads the result over the adapted thirds of the fused
    projection.
    """
    path = real_loras / "wujindou__BLOOM-LORA/adapter_model.bin"
    config = json.loads((path.parent / "adapter_config.json").read_text())
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "base_model.model.transformer.h.0.self_attention.query_key_value."
    A, B = tensors[prefix + "lora_A.weight"], tensors[prefix + "lora_B.weight"]
    enabled = config["enable_lora"]
    grouped = (
        torch.nn.functional.conv1d(A.unsqueeze(0), B, groups=sum(enabled)).squeeze(0)
        * config["lora_alpha"]
        / config["r"]
    )
    expected = torch.zeros(len(enabled), len(B) // sum(enabled), A.shape[1])
    expected[torch.tensor(enabled)] = grouped.reshape(sum(enabled), -1, A.shape[1])
    lora = read(path)
    torch.testing.assert_close(lora.layers[0].delta(), expected.flatten(0, 1), rtol=1e-4, atol=1e-7)
    assert lora.parameters == sum(tensor.numel() for tensor in tensors.values())


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"x": Evil()}))
    torch.save({"x": Evil()}, tmp_path / "evil.bin")
    for name in ("evil.pt", "evil.bin"):
        with pytest.raises(LoRAFormatError, match="not executed|no pickle|Not a readable"):
            read(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_other_families_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    families = {
        "oft": ({"base_model.model.q.oft_r": torch.zeros(2, 3, 3)}, "OFT"),
        "oft_lycoris": (
            {"lora_unet_q.oft_blocks": torch.zeros(2, 3, 3), "lora_unet_q.alpha": torch.tensor(1.0)},
            "OFT",
        ),
        "ia3": ({"base_model.model.k.ia3_l": torch.zeros(8, 1)}, "IA³"),
        "norm": ({"lycoris_norm.w_norm": torch.zeros(8), "lycoris_norm.b_norm": torch.zeros(8)}, "norm"),
        "full": ({"lora_unet_x.diff": torch.zeros(8, 8)}, "full or norm"),
        "glora": ({"lora_unet_x.a1.weight": torch.zeros(8, 8), "lora_unet_x.alpha": torch.tensor(1.0)}, "GLoRA"),
        "prompt": ({"prompt_embeddings": torch.zeros(4, 16)}, "prompt tuning"),
        "model": ({"model.embed.weight": torch.zeros(4, 16)}, "No low-rank pairs"),
    }
    for name, (tensors, reason) in families.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(NotLowRankError, match=reason):
            read(tmp_path / f"{name}.safetensors")
