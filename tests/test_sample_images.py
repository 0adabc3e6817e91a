"""The small diffusion model, its scorer and the two image zoos that come with the repository."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from PIL import Image

from lol_core.collections.zoo import Zoo
from lol_core.core.batch import WeightSpec
from lol_core.core.geometry import norm
from lol_core.core.header import ModuleHeader
from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import DataMissingError, LoRAFormatError
from lol_core.finetuning.judge import Judge, train_judge
from lol_core.finetuning.people import ATTRIBUTES
from lol_core.finetuning.picture_data import pictures_of
from lol_core.finetuning.picture_reader import ReaderSettings
from lol_core.finetuning.pictures import CLASSES, Drawings, any_picture
from lol_core.finetuning.scorer import SCORE_WEIGHT, Scorer, retrieval
from lol_core.insight.generation import Painter, Sampling, contact_sheet
from lol_core.learning.models import LoLModel, make_model
from tests.conftest import ROOT
from tests.waiting import PATIENCE

SAMPLES = ROOT / "sample_loras"
FACES, EMOJINETTE, BASE, CLIP = (SAMPLES / name for name in ("faces", "emojinette", "small-diffusion", "small-clip"))
SAMPLING = Sampling(steps=6)


def built(folder: Path) -> Zoo:
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"{folder.name} has not been built yet: make {folder.name}")
    return Zoo.open(folder)


@pytest.fixture(scope="module")
def faces() -> Zoo:
    return built(FACES)


@pytest.fixture(scope="module")
def emojinette() -> Zoo:
    return built(EMOJINETTE)


@pytest.fixture(scope="module", params=[FACES, EMOJINETTE], ids=lambda folder: folder.name)
def zoo(request: pytest.FixtureRequest) -> Zoo:
    return built(request.param)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(CLIP)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    return Painter(BASE, cache=tmp_path_factory.mktemp("images"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_everything_fits_into_git() -> None:
    assert size_of(BASE) + size_of(CLIP) <= 40_000_000
    assert size_of(SAMPLES) <= 120_000_000


def test_a_zoo_is_whole(zoo: Zoo) -> None:
    assert not zoo.refused and not zoo.unjoined_labels and zoo.labels_problem is None
    assert {e.base_model for e in zoo.entries} == {BASE.name}
    recipe = json.loads((zoo.folder / "recipe.json").read_text())
    assert recipe["base"] == BASE.name and {e.ranks for e in zoo.entries} == {(recipe["rank"],)}
    assert len({e.digest for e in zoo.entries}) == len(zoo)
    assert all((zoo.folder / "previews" / f"{Path(id).stem}.webp").is_file() for id in zoo.ids)
    measured = zoo.labels.drop(columns="clip_score_again", errors="ignore")  # of the first 500 LoRAs
    assert measured.notna().all().all()


def test_every_subset_of_the_ten_classes_is_there_once(emojinette: Zoo) -> None:
    present = emojinette.labels[[f"has {name}" for name in sorted(CLASSES)]]
    assert len(present.drop_duplicates()) == 1023 == len(present)
    assert (present.sum(axis=1) == emojinette.labels["n_images"]).all() and present.sum(axis=1).min() == 1


def test_labels_of_faces_were_drawn_and_measured(faces: Zoo) -> None:
    recipe, labels = json.loads((FACES / "recipe.json").read_text()), faces.labels
    assert len(faces) >= 1000
    for column, values in (
        ("learning_rate", "learning_rates"),
        ("steps", "steps"),
        ("batch_size", "batch_sizes"),
        ("prompt", "prompts"),
    ):
        assert set(labels[column]) == set(recipe[values])
    for attribute in recipe["attributes"]:
        assert 0.15 < labels[attribute].mean() < 0.85, f"{attribute} says something"
    scores = pd.read_csv(FACES / "clip_scores.csv").set_index("lora")
    assert scores.shape == (len(faces), 1 + len(recipe["score_prompts"])) and len(recipe["score_prompts"]) >= 33
    assert np.allclose(scores.iloc[:, 1:].mean(axis=1), scores["clip_score"], atol=1e-4)
    assert np.allclose(scores["clip_score"].reindex(labels.index), labels["clip_score"], atol=1e-4)
    assert labels["clip_score"].between(0, SCORE_WEIGHT).all() and labels["clip_score"].std() > 0.02
    for name, count in (("original", 1000), ("again", 500)):
        own = labels[f"clip_score_{name}"].dropna()
        rows = pd.read_csv(ROOT / "benchmarks" / "results" / f"faces-clip-score-{name}.csv").set_index("lora")
        assert len(own) == len(rows) == count
        assert np.allclose(own, rows.filter(regex=r"^\d").mean(axis=1).reindex(own.index), atol=1e-4)


def test_every_lora_was_trained(zoo: Zoo) -> None:
    for id in zoo.ids[::10]:
        lora = zoo.load(id)
        lora.check_finite()
        assert min(norm(layer) for layer in lora.layers) > 0


def test_a_lora_changes_the_images_and_zero_strength_is_the_base(painter: Painter, faces: Zoo) -> None:
    strongest = faces.folder / str(faces.labels["learning_rate"].idxmax())
    prompts = ["a person on the beach", "a dog on a green background"]
    plain, worn = painter.draw(None, prompts, SAMPLING), painter.draw(strongest, prompts, SAMPLING)
    off = painter.draw(strongest, prompts, Sampling(steps=6, strength=0.0))
    for a, b, c in zip(plain, worn, off, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() > 2
        assert np.abs(np.asarray(a, int) - np.asarray(c, int)).max() <= 1
    again = painter.draw(None, prompts, SAMPLING, keep=False)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(plain, again, strict=True)), (
        "after a LoRA the base is itself again"
    )


def test_a_lora_loads_with_diffusers(painter: Painter, zoo: Zoo) -> None:
    pipeline, path = painter.pipeline, zoo.folder / zoo.ids[0]
    x, t, text = (
        torch.randn(1, pipeline.unet.config.in_channels, 8, 8),
        torch.tensor([500]),
        torch.randn(1, 7, pipeline.unet.config.cross_attention_dim),
    )
    with torch.no_grad():
        plain = pipeline.unet(x, t, text).sample
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        assert (pipeline.unet(x, t, text).sample - plain).abs().max() > 1e-3
        pipeline.unload_lora_weights()
        torch.testing.assert_close(pipeline.unet(x, t, text).sample, plain)


def test_images_are_kept_and_drawing_stops(painter: Painter) -> None:
    sampling = Sampling(seed=7, steps=4)
    assert not painter.is_drawn(None, "a cat", sampling)
    stopped = Reporter(stop=lambda: True)
    with pytest.raises(Stopped):
        painter.draw(None, ["a cat"], sampling, stopped)
    assert not painter.is_drawn(None, "a cat", sampling)
    seen: list[Progress] = []
    first = painter.draw(None, ["a cat"], sampling, Reporter(seen.append))[0]
    assert [progress.fraction for progress in seen] == [0.25, 0.5, 0.75, 1.0]
    assert painter.is_drawn(None, "a cat", sampling)
    second = painter.draw(None, ["a cat"], sampling, stopped)[0]
    assert np.array_equal(np.asarray(first), np.asarray(second)), "found, not drawn"


def test_a_model_that_is_made_while_a_base_is_opened_has_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipeline puts what any thread makes onto the meta device."""
    inside, made = Event(), Event()

    def slowly(*args: object, **kwargs: object) -> MagicMock:
        with init_empty_weights():
            inside.set()
            made.wait(0.5)
        return MagicMock()

    def make() -> LoLModel:
        assert inside.wait(PATIENCE)
        model = make_model("mlp", WeightSpec((ModuleHeader("a", 3, 4, 2),)), 1)
        made.set()
        return model

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", slowly)
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(make)
        assert Painter(BASE).pipeline
        assert not any(weight.is_meta for weight in model.result().parameters())


def test_a_lora_of_another_model_is_refused_by_name(painter: Painter) -> None:
    stranger = next((SAMPLES / "glosses" / "loras").iterdir())
    with pytest.raises(LoRAFormatError, match="base it was trained on"):
        painter.draw(stranger, ["a dog"], SAMPLING)
    assert painter.draw(None, ["a dog"], SAMPLING), "and the base still draws"


def test_the_scorer_is_a_ruler(scorer: Scorer) -> None:
    """Top-1 retrieval among 32 on pictures it never saw; chance is 0.03."""
    pytest.importorskip("dicebear", reason="dicebear, a development tool, is not installed")
    drawings = Drawings(SAMPLES / "pictures" / "drawings.json")
    images, captions = zip(*(any_picture(drawings, seed) for seed in range(1_000_000, 1_000_128)), strict=True)
    found = retrieval(scorer, list(images), list(captions))
    assert min(found.values()) >= 0.6, found


def test_the_clip_score_is_hessels(scorer: Scorer, painter: Painter) -> None:
    images = painter.draw(None, ["a dog on a green background"], SAMPLING) * 2
    prompts = ["a dog on a green background", "a frowning bearded person at night"]
    cosines = (scorer.embed_images(images) * scorer.embed_texts(prompts)).sum(1)
    torch.testing.assert_close(scorer.scores(images, prompts), SCORE_WEIGHT * cosines.clamp_min(0))
    assert scorer.scores(images, prompts)[0] > scorer.scores(images, prompts)[1]


def test_the_scorers_text_encoder_is_not_the_bases(scorer: Scorer, painter: Painter) -> None:
    ours, theirs = scorer.model.text_model.state_dict(), painter.pipeline.text_encoder.state_dict()
    for name, tensor in ours.items():
        other = theirs.get(f"text_model.{name}", theirs.get(name))
        if other is not None and other.shape == tensor.shape and tensor.ndim > 1 and tensor.is_floating_point():
            assert not torch.allclose(other.float(), tensor.float(), atol=1e-2), name


def test_a_sheet_shows_all(painter: Painter) -> None:
    images = painter.draw(None, ["a dog", "a cat"], SAMPLING)
    sheet = contact_sheet([[images[0], images[0]], [images[1], images[1]]], ["A\nB", "C"], ["a dog", "a cat"], cell=64)
    assert isinstance(sheet, Image.Image) and sheet.width > 128 and sheet.height > 128


def test_a_long_name_in_a_sheet_does_not_run_into_the_next() -> None:
    rows = [[Image.new("RGB", (8, 8))] * 2]
    right = [
        contact_sheet(rows, [title, "B"], ["a dog"], cell=64).crop((80, 0, 158, 28)).tobytes()
        for title in ("A", "A" * 100)
    ]
    assert right[0] == right[1]


def test_a_data_card_is_there(zoo: Zoo) -> None:
    card = (zoo.folder / "README.md").read_text()
    for fact in ("finetune zoo --recipe", "failed", "Licences"):
        assert fact in card, fact


def test_the_judge_sees_what_people_wear_whom_it_never_saw(tmp_path: Path) -> None:
    """On pictures of the held-out people of the zoo, which it was not trained on; one of other content is refused."""
    shown = [picture for person in (3, 5) for picture in pictures_of(person, 3)]
    read = Judge.load(SAMPLES / "small-judge").probabilities([image for image, _ in shown]) > 0.5
    truth = torch.tensor([[seen[name] for name in ATTRIBUTES] for _, seen in shown])
    assert (read == truth).float().mean() > 0.9 and 0.2 < truth.float().mean() < 0.8
    (tmp_path / "model.safetensors").write_bytes((SAMPLES / "small-clip" / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(DataMissingError, match="no judge of pictures there"):
        Judge.load(tmp_path)


def test_a_judge_is_trained_and_goes_on(tmp_path: Path, in_threads: None) -> None:
    few = ReaderSettings(pictures=20, steps=2, seed=3, batch=4)
    places = tmp_path / "judge", BASE, SAMPLES / "pictures" / "drawings.json", tmp_path / "work"
    with pytest.raises(Stopped):
        stopping = Reporter(stop=lambda: (tmp_path / "work/curve.csv").exists())
        train_judge(*places, settings=few, workers=1, reporter=stopping)
    right = train_judge(*places, settings=few, workers=1)
    assert list(right) == list(ATTRIBUTES) and Judge.load(tmp_path / "judge")
