"""Public collections rebuilt small, as their own code lays them out, open with their labels. Nothing in them was
fine-tuned; the collections themselves were never at hand.
"""

from __future__ import annotations

import json
import math
import operator
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from lol_core.collections.layouts import weights2weights
from lol_core.collections.layouts.beside import only
from lol_core.collections.opening import open_source
from lol_core.core.lora import LoRA
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import ZooError
from lol_core.learning.executor import Processes
from tests.builders import random_lora, write_peft
from tests.hub import Answer, Hub, hub

SITES = (
    ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 320, 320),
    ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 1280, 768),
)
__all__ = ["hub"]


def unet(rank: int, seed: int) -> Mapping[str, tuple[Tensor, Tensor]]:
    """module → (down (r, m), up (n, r))."""
    lora = random_lora(tuple((name, n, m, rank) for name, n, m in SITES), seed)
    return {y.name: (y.V.T.float().contiguous(), y.U.float().contiguous()) for y in lora.layers}


def peft_unet(folder: Path, rank: int, seed: int, alpha: int = 27) -> None:
    write_peft(folder, random_lora(tuple((name, n, m, rank) for name, n, m in SITES), seed), alpha=alpha)


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_faces_of_learning_on_loras(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "models_4"
    names = ["model_0_0_0_0_17", "model_1_3_1_3_1782", "model_3_2_2_1_5"]
    for i, name in enumerate(names):
        peft_unet(folder / name / "unet", 4, i)
        if i < 2:
            torch.save(27.4153 + i, folder / name / "score")
    splits = folder if not packed else tmp_path  # they come with the code, not with the zip
    for part, members in (("train", names[:1]), ("valid", names[1:2]), ("test", names[2:])):
        torch.save(members, splits / f"{part}.pt")
    source = open_source(zipped(folder) if packed else folder)
    assert len(source) == 3 and source.entries[0].scales[0] == 27 / 4
    labels: Any = source.labels.loc["model_1_3_1_3_1782/unet/adapter_model.safetensors"]
    assert labels["clip_score"] == pytest.approx(28.4153) and math.isnan(source.labels["clip_score"].iloc[2])
    assert labels["learning_rate_index"] == "1", "script and paper disagree on what it was"
    assert (labels["steps"], labels["gradient_accumulation"], labels["prompt"]) == (200, 2, "skd")
    assert labels["person"] == "celeb_1782"
    assert sorted(source.labels["split"]) == ["test", "train", "validation"] and labels["split"] == "validation"
    assert "Learning on LoRAs, CelebA" in source.remarks[-1]
    shown: list[str] = []

    def stop() -> bool:
        return any(message.startswith("Reading labels") for message in shown)

    with pytest.raises(Stopped):
        open_source(source.address, reporter=Reporter(lambda progress: shown.append(progress.message), stop))


def test_the_attributes_of_faces_are_of_most_of_their_pictures(tmp_path: Path) -> None:
    for person in (3, 4, 6):
        peft_unet(tmp_path / "zoo" / "models_4" / f"model_0_0_0_0_{person}" / "unet", 4, person)
    pictures = {3: [1, 2, 3], 4: [4], 6: [1, 2]}
    for person, numbers in pictures.items():
        (tmp_path / "zoo" / f"celeb_{person}").mkdir()
        for picture in numbers:
            (tmp_path / "zoo" / f"celeb_{person}" / f"{picture}.jpg").write_bytes(b"")
    table = pd.DataFrame({"image_id": ["a", "b", "c", "d"], "Male": [1, -1, -1, 1], "Young": [1, 1, -1, -1]})
    table = table.assign(Wearing_Lipstick=-1, Big_Lips=1, No_Beard=[1, -1, 1, 1])
    table.to_csv(tmp_path / "zoo" / "list_attr_celeba.csv", index=False)
    labels = open_source(tmp_path / "zoo").labels.set_index("person").loc[["celeb_3", "celeb_4", "celeb_6"]]
    found = labels[["Male", "Young", "No_Beard"]].to_numpy().tolist()
    assert found == [[0, 1, 1], [1, 0, 1], [1, 1, 1]], "where pictures are divided, it counts as there"


def test_imagenette_of_learning_on_loras(tmp_path: Path) -> None:
    for i, bits in enumerate(("0100000001", "1111111111")):
        for run in (0, 1):
            peft_unet(tmp_path / "models_32" / f"model_num_{bits}_{run}" / "unet", 8, i)
    source = open_source(tmp_path / "models_32")
    row = source.labels.loc["model_num_0100000001_1/unet/adapter_model.safetensors"]
    assert [row[f"bit_{i}"] for i in range(10)] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert row["classes"] == 2 and row["run"] == 1 and source.labels["subset"].nunique() == 2


def test_language_models_of_learning_on_loras(tmp_path: Path) -> None:
    folder = tmp_path / "qwen2_arc_data"
    modules = (("model.layers.0.self_attn.k_proj", 256, 1536, 4), ("model.layers.0.self_attn.v_proj", 256, 1536, 4))
    for index in (0, 2, 11):
        lora = random_lora(modules, index)
        place = folder / f"lora_{index}"
        place.mkdir(parents=True)
        tensors = {}
        for y in lora.layers:
            tensors[f"base_model.model.{y.name}.lora_A.weight"] = y.V.T.float().contiguous()
            tensors[f"base_model.model.{y.name}.lora_B.weight"] = y.U.float().contiguous()
        torch.save(tensors, place / "adapter_model.bin")
        (place / "ARC-Challenge-Acc.txt").write_text(f"0.{index}5\n")
        (place / "eval_loss.txt").write_text("1.5")
    rows = ["1e-4,0.1,3,8,0.05,MCAS|AKDE&ED", "2e-4,0,1,4,0,", "3e-4,0,2,4,0,WASL"]
    head = "learning_rate,weight_decay,num_epochs,batch_size,lora_dropout,filter_sources"
    (tmp_path / "hparams.csv").write_text("\n".join([head, *rows]))
    labels: Any = open_source(zipped(folder)).labels
    first, third, beyond = (labels.loc[f"lora_{i}/adapter_model.bin"] for i in (0, 2, 11))
    assert first["arc_challenge_accuracy"] == 0.05 and first["eval_loss"] == 1.5
    assert (first["learning_rate"], third["learning_rate"]) == (1e-4, 3e-4), "rows count from 0, without the header"
    assert (first["used_MCAS"], first["used_AKDE&ED"], first["used_WASL"]) == (0, 0, 1)
    assert (third["used_MCAS"], third["used_WASL"]) == (1, 0)
    assert math.isnan(beyond["learning_rate"]) and beyond["arc_challenge_accuracy"] == 0.115


def test_model_j(tmp_path: Path, hub: Hub) -> None:
    for split, index, kind in (("train", 7, "n02111277"), ("val_holdout", 4300, "n01440764")):
        folder = tmp_path / "SD_200" / split / f"model_idx_{index:04d}"
        folder.mkdir(parents=True)
        tensors = {}
        for name, (down, up) in unet(16, index).items():
            tensors[f"unet.{name}.lora.down.weight"] = down
            tensors[f"unet.{name}.lora.up.weight"] = up
        metadata = {"format": "pt", "imagenet_class_id": kind, "seed": str(index)}
        save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata=metadata)
        base = "CompVis/stable-diffusion-v1-4"
        card = f"| Field | Value |\n|---|---|\n| Learning Rate | 0.0001 |\n| Base Model | `{base}` |\n"
        (folder / "README.md").write_text(card)
        (folder / "training_images").mkdir()
        (folder / "training_images" / "0.png").write_bytes(b"")
    source = open_source(tmp_path / "SD_200")
    hub.add("models/ProbeX/SD_200", tmp_path / "SD_200")
    hub.fail = lambda method, path: Answer(404) if "4300/README" in path else None
    partly, before = open_source("hf://ProbeX/SD_200"), len(hub.asked)
    assert "Could not be read: 1 file with labels" in partly.remarks[-1]
    hub.fail = lambda method, path: None
    pd.testing.assert_frame_equal(open_source("hf://ProbeX/SD_200").labels, source.labels)
    cards = [asked.path for asked in hub.asked[before:] if "README" in asked.path]
    assert len(cards) == 1 and "4300" in cards[0], "what came is kept"
    row = source.labels.loc["val_holdout/model_idx_4300/pytorch_lora_weights.safetensors"]
    assert row["imagenet_class_id"] == "n01440764" and row["seed"] == 4300 and row["learning_rate"] == 1e-4
    assert row["split"] == "validation of unseen classes" and row["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert source.entries[0].scales == (1.0, 1.0)


def test_images_of_w2t(tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    for name in ("model_0_1_0_3_2_1", "model_2_0_0_0_0_2"):
        peft_unet(root / name / "unet", 8, 1)
    pd.DataFrame({"celeb_folder": ["celeb_2", "celeb_1"], "num_images_in_folder": [9, 8], "Male": [1, 0]}).to_csv(
        root / "celeba_labels.csv", index=False
    )
    runs = {"run_name": ["model_0_1_0_3_2_1"], "seed": [123], "adapter_model_path": ["/home/authors/x.safetensors"]}
    pd.DataFrame(runs).to_csv(root / "results.csv", index=False)
    torch.save(["model_0_1_0_3_2_1"], root / "train.pt")
    labels = open_source(root).labels
    row = labels.loc["model_0_1_0_3_2_1/unet/adapter_model.safetensors"]
    assert row["Male"] == 0 and row["subject"] == "subject 1" and row["seed"] == 123 and row["split"] == "train"
    assert (row["learning_rate"], row["gradient_accumulation"], row["prompt"]) == (3e-4, 4, "human")
    assert labels["Male"].tolist() == [0, 1] and not any("path" in column for column in labels.columns)


LLAMA = (("model.layers.0.self_attn.q_proj", 48, 48, 8), ("model.layers.0.self_attn.v_proj", 16, 48, 8))


def language_lora(path: Path, seed: int, infix: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for y in random_lora(LLAMA, seed).layers:
        tensors[f"base_model.model.{y.name}.lora_A{infix}.weight"] = y.V.T.float().contiguous()
        tensors[f"base_model.model.{y.name}.lora_B{infix}.weight"] = y.U.float().contiguous()
    save_file(tensors, path)
    settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    path.with_name(path.stem + "_config.json").write_text(json.dumps(settings))


def test_emotions_of_w2t(tmp_path: Path) -> None:
    root = tmp_path / "goemotions" / "llama"
    paths = [root / f"lora_goemotions_llama_{i}.safetensors" for i in (10, 11)]
    for i, path in enumerate(paths):
        language_lora(path, i)
    (tmp_path / "goemotions" / "labels.json").write_text(json.dumps({"label_names": ["joy", "love"]}))
    table = {
        "run_id": [11, 10],
        "safetensors_path": [f"/data/authors/{path.name}" for path in reversed(paths)],
        "text_sha1": ["b", "a"],
        "label_vector": ["[0, 1]", "[1, 0]"],
        "test_loss": [0.5, 0.25],
    }
    pd.DataFrame(table).to_csv(tmp_path / "goemotions" / "metadata.csv", index=False)
    source = open_source(tmp_path / "goemotions")
    assert source.labels[["joy", "love"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert source.labels["test_loss"].tolist() == [0.25, 0.5]
    assert source.entries[0].scales == (2.0, 2.0), "the configuration has another name here"


@pytest.mark.parametrize("content", ["{", "[]", '{"label_names": 1}', '{"label_names": ["joy", "love"]}'])
def test_emotions_of_w2t_open_with_damaged_labels(tmp_path: Path, content: str) -> None:
    for i in (10, 11):
        language_lora(tmp_path / "llama" / f"lora_goemotions_llama_{i}.safetensors", i)
    (tmp_path / "labels.json").write_text(content)
    names = [f"lora_goemotions_llama_{i}.safetensors" for i in (10, 11)]
    table = {"safetensors_path": names, "label_vector": ["[0, 1]", "[0,"], "test_loss": [0.5, 0.25]}
    pd.DataFrame(table).to_csv(tmp_path / "metadata.csv", index=False)
    labels = open_source(tmp_path).labels
    assert labels["test_loss"].tolist() == [0.5, 0.25]
    assert ("love" in labels) == ("love" in content)
    if "love" in content:
        assert labels["love"].iloc[0] == 1 and pd.isna(labels["love"].iloc[1])


@pytest.mark.parametrize("with_table", [True, False])
def test_trials_of_w2t(tmp_path: Path, with_table: bool) -> None:
    for i in (1, 2):
        name = f"trial_{i:06d}"
        language_lora(tmp_path / "arc" / name / f"{name}.safetensors", i, ".default")
        (tmp_path / "arc" / name / "metrics.json").write_text(json.dumps({"test_acc": i / 10, "dataset": "arc"}))
    if with_table:
        paths = [f"C:\\out\\trial_{i:06d}.safetensors" for i in (2, 1)]
        pd.DataFrame({"run_name": ["x", "y"], "safetensors_path": paths, "test_acc": [0.2, 0.1], "lr": [1, 2]}).to_csv(
            tmp_path / "arc" / "results.csv", index=False
        )
    source = open_source(tmp_path / "arc")
    assert source.labels["test_acc"].tolist() == [0.1, 0.2] and ("lr" in source.labels) == with_table
    assert source.entries[0].scales == (2.0, 2.0) and len(source) == 2


def test_a_zip_of_faces_on_the_hub_opens_again_without_a_network(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models_4"
    for i in range(3):
        peft_unet(folder / f"model_0_0_0_0_{i}" / "unet", 4, i)
        torch.save(20.0 + i, folder / f"model_0_0_0_0_{i}" / "score")
    hub.add("datasets/some/zips", {"celeba/models_4.zip": zipped(folder).read_bytes()})
    address = "hf://datasets/some/zips/celeba/models_4.zip"
    open_source(address, cache=tmp_path / "counted")
    served = iter([None] * (sum("/cdn/" in asked.path for asked in hub.asked) - 1))
    hub.fail = lambda method, path: next(served, Answer(404)) if "/cdn/" in path else None
    assert "Could not be read: 1 file with labels" in open_source(address).remarks[-1], "the last score"
    hub.fail = lambda method, path: None
    online = open_source(address)
    assert online.labels["clip_score"].tolist() == [20, 21, 22] and "could not" not in online.remarks[-1]
    online.load(online.ids[1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    source = open_source(address)
    assert len(hub.asked) == before and source.ids == online.ids and "without the hub" in " ".join(source.remarks)
    pd.testing.assert_frame_equal(source.labels, online.labels)
    assert torch.equal(source.load(source.ids[1]).layers[0].U, online.load(online.ids[1]).layers[0].U)


def test_lots_of_loras(tmp_path: Path, hub: Hub) -> None:
    write_peft(tmp_path / "adapter", random_lora(LLAMA))
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    for suffix in ("task75", "task1391"):
        hub.add(f"models/Lots-of-LoRAs/Mistral-7B-Instruct-v0.2-4b-r16-{suffix}", files)
    hub.add("datasets/Lots-of-LoRAs/task075_squad1.1_answer_generation", {})
    labels = open_source("hf://Lots-of-LoRAs").labels
    assert labels["task"].tolist() == [1391, 75]
    assert labels["task_name"].tolist()[1] == "squad1.1_answer_generation", "padding does not matter"


def lora_wise(path: Path, rank: int, rows: Sequence[tuple[int, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[object]] = {"label": [label for label, _ in rows], "name": [name for _, name in rows]}
    for i in range(len(rows)):
        for name, (down, up) in unet(rank, i).items():
            columns.setdefault(f"unet.{name}.lora.down.weight", []).append(down.double().flatten().tolist())
            columns.setdefault(f"unet.{name}.lora.up.weight", []).append(up.double().flatten().tolist())
    pq.write_table(pa.table(columns), path, row_group_size=2)


def test_rows_of_parquet_on_the_hub_are_known_by_its_footer(tmp_path: Path, hub: Hub) -> None:
    lora_wise(tmp_path / "wise" / "low" / "32" / "train.parquet", 32, [(i, "panda") for i in range(1, 5)])
    hub.add("datasets/some/wise", tmp_path / "wise")
    source, local = open_source("hf://datasets/some/wise"), open_source(tmp_path / "wise")
    assert source.ids == local.ids and source.labels["images"].tolist() == [1, 2, 3, 4]
    assert "these 4 LoRAs are 2.8 MB there" in source.remarks[-1] and not local.remarks
    assert hub.sent() < (tmp_path / "wise" / "low" / "32" / "train.parquet").stat().st_size / 2
    assert torch.equal(source.load("low_32/panda_3").layers[0].U, local.load("low_32/panda_3").layers[0].U)


def test_lora_wise(tmp_path: Path) -> None:
    lora_wise(tmp_path / "wise" / "low" / "8" / "train-00000-of-00001.parquet", 8, [(1, "plushie"), (6, "plushie")])
    lora_wise(tmp_path / "wise" / "medium" / "32_2" / "train.parquet", 32, [(1, 7), (50, 7), (20, 9)])
    (tmp_path / "wise" / "other.parquet").write_bytes(b"PAR1 nothing")
    source = open_source(tmp_path / "wise")
    assert source.ids == [
        "low_8/plushie_1",
        "low_8/plushie_6",
        "medium_32_2/7_1",
        "medium_32_2/7_50",
        "medium_32_2/9_20",
    ]
    assert source.labels["images"].tolist() == [1, 6, 1, 50, 20]
    assert source.labels["subject"].tolist() == ["plushie", "plushie", "7", "7", "9"]
    assert source.labels["rank"].tolist() == [8, 8, 32, 32, 32] and source.entries[0].ranks == (8,)
    for id, rank, row in (("low_8/plushie_6", 8, 1), ("medium_32_2/9_20", 32, 2)):
        lora = source.load(id)
        for layer, (down, up) in zip(lora.layers, unet(rank, row).values(), strict=True):
            assert torch.equal(layer.U, up) and torch.equal(layer.V, down.T) and layer.scale == 1
    assert len({entry.digest for entry in source.entries}) == 5
    lora_wise(tmp_path / "odd" / "low" / "9" / "train.parquet", 8, [(1, "x")])
    assert not len(open_source(tmp_path / "odd")), "what is no width of the model is not reshaped"


def matrix(folder: Path, count: int) -> Tensor:
    """weights2weights: rank 1, q and v, flattened in the order of the dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    dimensions, rows = {}, []
    for i in range(count):
        parts = []
        for name, (down, up) in unet(1, i).items():
            for side, factor in (("A", down), ("B", up)):
                dimensions[f"base_model.model.{name}.lora_{side}.weight"] = ((factor.numel(),), factor.shape)
                parts.append(factor.flatten())
        rows.append(torch.cat(parts))
    torch.save(torch.stack(rows), folder / "all_weights.pt")
    torch.save(dimensions, folder / "weight_dimensions.pt")
    return torch.stack(rows)


def test_weights2weights(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "w2w"
    matrix(folder, 40)
    (folder / "identity_df.pt").write_bytes(b"\x80\x02cpandas\nDataFrame\n.")
    source = open_source(folder)
    assert len(source) == 40 and source.ids[3] == "row_00003" and "save it as labels.parquet" in source.remarks[0]
    for layer, (down, up) in zip(source.load("row_00003").layers, unet(1, 3).values(), strict=True):
        assert torch.equal(layer.U, up) and torch.equal(layer.V, down.T) and layer.scale == 27
    own = pd.DataFrame({"path": ["row_00003", "row_00009"], "mine": [3, 9]})
    own.to_csv(tmp_path / "own.csv", index=False)
    mine = open_source(folder, tmp_path / "own.csv").labels["mine"]
    assert mine.dropna().to_dict() == {"row_00003": 3, "row_00009": 9}
    table = pd.DataFrame({"file": np.arange(40) + 100, "Male": [0, 1] * 20, "Young": [0.5, 1.0] * 20}, dtype=object)
    table = table.astype({"file": int, "Male": "int8", "Young": float})  # texts as objects, as pandas had them then
    torch.save(table.set_axis(table.columns.astype(object), axis=1), folder / "identity_df.pt")
    source = open_source(folder)
    assert not source.remarks and source.labels["Young"].tolist() == [0.5, 1.0] * 20
    assert source.ids[1] == "101" and source.labels["Male"].tolist() == [0, 1] * 20
    table[["file", "Male"]].to_parquet(folder / "labels.parquet")
    source = open_source(folder)
    assert source.ids[:2] == ["100", "101"] and source.labels.loc["101", "Male"] == 1 and not source.remarks
    hub.add("models/snap/w2w", folder)
    before = len(hub.asked)
    remote = open_source("hf://snap/w2w")
    assert remote.ids == source.ids and torch.equal(remote.load("139").layers[0].U, source.load("139").layers[0].U)
    whole = (folder / "all_weights.pt").stat().st_size
    assert hub.sent(before) < whole, "rows are read, not the matrix"
    pd.DataFrame({"file": [1]}).to_parquet(folder / "labels.parquet")
    with pytest.raises(ZooError, match="1 rows for 40 LoRAs"):
        open_source(folder)
    torch.save(torch.zeros(3, 7), folder / "all_weights.pt")
    with pytest.raises(ZooError, match=r"\(3, 7\); expected a matrix of"):
        open_source(folder)


def test_weights2weights_as_its_repository_lies(tmp_path: Path) -> None:
    """Identities and dogs, and dimensions in a folder that one who opens the identities has not."""
    shapes = weights2weights.stable_diffusion()
    assert sum(map(math.prod, shapes.values())) == 99_648 and list(shapes) == sorted(shapes)
    sets = tmp_path / "weights_datasets"
    for name, file, count in (("identities", "all_weights.pt", 3), ("dogs", "dog_weights.pt", 2)):
        (sets / name).mkdir(parents=True)
        torch.save(torch.randn(count, 99_648), sets / name / file)
    pd.DataFrame({"file": [7, 8, 9]}).to_parquet(sets / "identities" / "labels.parquet")
    (tmp_path / "files").mkdir()
    counted = {key: ((math.prod(shape),), torch.Size(shape)) for key, shape in shapes.items()}
    torch.save(counted, tmp_path / "files" / "weight_dimensions.pt")
    whole, part, dogs = open_source(tmp_path), open_source(sets / "identities"), open_source(sets / "dogs")
    assert whole.ids == part.ids == ["7", "8", "9"] and len(dogs) == 2 and not dogs.labels.shape[1]
    for ours, theirs in zip(part.load("8").layers, whole.load("8").layers, strict=True):
        assert ours.name == theirs.name and torch.equal(ours.U, theirs.U) and ours.scale == 27


def test_a_table_of_ones_own_is_used_instead(tmp_path: Path) -> None:
    peft_unet(tmp_path / "zoo" / "model_0_0_0_0_17" / "unet", 4, 0)
    (tmp_path / "zoo" / "labels.csv").write_text("path,mine\nmodel_0_0_0_0_17/unet/adapter_model.safetensors,3\n")
    source = open_source(tmp_path / "zoo")
    assert list(source.labels.columns) == ["mine"] and not source.remarks


def test_rows_are_sent_to_other_processes(tmp_path: Path) -> None:
    matrix(tmp_path / "w2w", 3)
    lora_wise(tmp_path / "wise" / "low" / "8" / "train.parquet", 8, [(1, "a"), (2, "a"), (3, "a")])
    sources = [open_source(tmp_path / folder) for folder in ("w2w", "wise")]
    own = [source.load(source.ids[2]) for source in sources]
    there = [lora for _, lora in Processes(1).map(operator.call, [source.reader(source.ids[2]) for source in sources])]
    assert all(isinstance(lora, LoRA) for lora in there)
    assert {tuple(lora.layers[0].U.flatten().tolist()) for lora in there if isinstance(lora, LoRA)} == {
        tuple(lora.layers[0].U.flatten().tolist()) for lora in own
    }
    assert weights2weights.CONFIG["lora_alpha"] == 27


def test_a_name_that_two_share_takes_no_row() -> None:
    assert only({"a/x": "x", "b/x": "x", "c/y": "y"}) == {"y": "c/y"}


def test_shards_of_one_table_give_every_row_a_name_of_its_own(tmp_path: Path) -> None:
    for part in range(2):
        lora_wise(tmp_path / "wise" / "low" / "8" / f"train-{part}.parquet", 8, [(1, "a")])
    source = open_source(tmp_path / "wise")
    first, second = (source.load(id).layers[0].U for id in source.ids)
    assert len(set(source.ids)) == 2 and source.labels.index.is_unique
    assert first.shape == second.shape
