"""The drawn pictures, the loop that trains on them, and the way from drawings to a Stable Diffusion folder."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lol_core.core.progress import SILENT, Progress, Reporter, Stopped
from lol_core.errors import DataMissingError
from lol_core.finetuning.base_model import (
    LATENT_CHANNELS,
    BaseSettings,
    make_tokenizer,
    pixels,
    principal_latents,
    train_base,
)
from lol_core.finetuning.fitting import fit
from lol_core.finetuning.people import ATTRIBUTES, Look, Person, portrait
from lol_core.finetuning.pictures import (
    CLASSES,
    FAMILIAR,
    FAMILIAR_DESIGNS,
    Drawings,
    PictureMaker,
    any_picture,
    familiar_picture,
)
from lol_core.finetuning.scorer import Scorer, ScorerSettings
from lol_core.insight.generation import Sampling
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not find_spec("dicebear"), reason="dicebear, a development tool, is not installed")
PATH = ROOT / "sample_loras" / "pictures" / "drawings.json"


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    return Drawings(PATH)


def test_the_drawings_hold_every_class_in_every_design(drawings: Drawings) -> None:
    for design in drawings.designs.values():
        assert set(CLASSES) | set(FAMILIAR) <= set(design["drawings"]) and design["licence"] and design["author"]
    assert len(drawings.designs) == 4 and set(FAMILIAR_DESIGNS) < set(drawings.designs)


@pytest.mark.parametrize("make", [any_picture, familiar_picture])
def test_a_picture_is_made_from_its_number_alone(make: PictureMaker, drawings: Drawings) -> None:
    for seed in range(12):
        (first, caption), (second, again) = make(drawings, seed), make(drawings, seed)
        assert caption == again and np.array_equal(np.asarray(first), np.asarray(second)) and first.size == (64, 64)
    assert len({make(drawings, seed)[1] for seed in range(12)}) > 9


def test_captions_are_true() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person = Person.draw(rng)
        look = Look.draw(person, rng, steady=1.0)
        caption, shown = look.caption(rng), look.attributes
        assert list(shown) == list(ATTRIBUTES)
        for words, attribute, value in (
            ("smiling", "Smiling", True),
            ("frowning", "Smiling", False),
            ("bearded", "Beard", True),
            ("clean-shaven", "Beard", False),
            ("glasses", "Eyeglasses", True),
            (" hat", "Wearing_Hat", True),
            ("long ", "Long_Hair", True),
            ("short ", "Long_Hair", False),
        ):
            assert words not in caption or shown[attribute] is value, caption


def test_attributes_can_be_seen() -> None:
    """The same person with and without glasses, hat or beard is another picture."""
    from lol_core.finetuning.picture_data import all_visible

    seen = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        person = Person.draw(rng)
        if person.glasses or person.beard:
            seen.append(all_visible(person, rng))
    assert np.mean(seen) > 0.8


def test_moods_and_accessories_vary_about_the_person() -> None:
    rng = np.random.default_rng(3)
    person = next(p for p in (Person.draw(rng) for _ in range(100)) if p.glasses and p.smiling)
    shown = [portrait(person, rng)[2] for _ in range(60)]
    assert 0.75 < np.mean([s["Smiling"] for s in shown]) < 1 and 0.75 < np.mean([s["Eyeglasses"] for s in shown]) < 1


def test_missing_drawings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"drawings\.json"):
        Drawings(tmp_path / "drawings.json")


def test_the_tokenizer_writes_any_text() -> None:
    tokenizer = make_tokenizer(["a dog on a red background"] * 3)
    assert tokenizer.tokenize("A red dog") == ["a</w>", "red</w>", "dog</w>"]
    for text in ("Zwölf Boxkämpfer, 日本 & 1984!", "the words 'KEEP OFF'", ""):
        ids = tokenizer([text]).input_ids[0]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_the_first_code_is_linear_and_of_unit_size(drawings: Drawings) -> None:
    images = np.stack([np.asarray(any_picture(drawings, seed)[0]) for seed in range(40)])
    code = principal_latents(images)
    z = code(pixels(images))
    assert z.shape == (40, LATENT_CHANNELS, 8, 8)
    assert 0.5 < z.std() < 2 and z.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    spread = z.std(dim=(0, 2, 3))
    assert (spread.diff() <= 1e-5).all(), "components come in falling order"


def test_a_fit_that_was_stopped_goes_on_exactly(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(4, 3)

    def run(folder: Path, until: int | None, reporter: Reporter = SILENT) -> nn.Module:
        model = make()

        def loss_of(generator: torch.Generator, step: int) -> torch.Tensor:
            if step == until:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=generator)
            return (model(x) - x[:, :3].flip(1)).square().mean()

        return fit(folder, model, loss_of, steps=60, rate=1e-2, seed=5, reporter=reporter, saved_every=10)

    whole = run(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 37)
    with pytest.raises(Stopped, match="Step 40 of 60 is kept"):
        run(tmp_path / "b", None, Reporter(stop=lambda: True))
    resumed = run(tmp_path / "b", None)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    curve = pd.read_csv(tmp_path / "a" / "curve.csv", header=None)
    assert curve[0].tolist() == [50, 60] and curve[1].iloc[-1] < curve[1].iloc[0]


def test_from_drawings_to_a_pipeline_and_a_scorer(
    tmp_path: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of everything: the folders open, the same call again changes nothing, a further one starts from the
    weights and keeps the scorer.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel  # which takes seconds, in each process

    monkeypatch.setattr("lol_core.finetuning.base_model.SAMPLE_PROMPTS", ["a dog"])
    monkeypatch.setattr("lol_core.finetuning.base_model.Sampling", lambda **how: Sampling(**how | {"steps": 1}))
    out, clip, work = tmp_path / "small", tmp_path / "clip", tmp_path / "work"
    few = BaseSettings(vae_steps=4, vae_guided_steps=2, vae_batch=2, steps=3, batch=2)
    seen: list[Progress] = []
    how: Any = {"n_pictures": 20, "workers": 1, "n_threads": 1, "reporter": Reporter(seen.append)}
    measured = train_base(out, clip, work, PATH, settings=few, scorer_settings=ScorerSettings(steps=3, batch=4), **how)
    parts = [progress.message.partition(":")[0] for progress in seen]
    assert parts == ["Pictures", "Scorer", "Pictures", "Autoencoder", "Diffusion"]
    assert [progress.fraction for progress in seen] == pytest.approx([0.05, 0.25, 0.3, 0.6, 1.0])
    assert 0 <= measured["image_to_text"] <= 1
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32} and (out / "samples.jpg").is_file()
    names = [name for name, _ in pipeline.unet.named_modules()]
    assert all(any(name.endswith(end) for name in names) for end in ("to_q", "to_k", "to_v", "to_out.0"))
    assert Scorer(clip).embed_texts(["a dog"]).norm() == pytest.approx(1, abs=1e-5)
    stamp = (work / "any.npy").stat().st_mtime_ns
    weights = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_base(out, clip, work, PATH, settings=few, scorer_settings=ScorerSettings(steps=3, batch=4), **how)
    assert (work / "any.npy").stat().st_mtime_ns == stamp
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights

    ruler = (clip / "model.safetensors").read_bytes()
    seen.clear()
    still = replace(few, steps=1, rate=1e-9, vae_steps=1, vae_rate=1e-9)
    further = tmp_path / "further"
    train_base(further, clip, tmp_path / "more", PATH, settings=still, start=out, **how | {"n_pictures": 20})
    assert not any("Scorer" in progress.message for progress in seen)
    assert (clip / "model.safetensors").read_bytes() == ruler
    before, after = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict() for folder in (out, further)
    )
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-2)
    assert str(tmp_path) not in (tmp_path / "further" / "unet" / "config.json").read_text(), (
        "no folder of this machine in what is published"
    )
