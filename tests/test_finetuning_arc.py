"""The language recipe: ARC as it is distributed, a causal language model, sources left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lol_core.collections.zoo import Zoo
from lol_core.core.progress import Reporter, Stopped
from lol_core.errors import DataMissingError
from lol_core.finetuning.arc import ARC, Question, Reader, build_arc, read_questions
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.recipes import Hyperparameters

RECIPE = replace(ARC, epochs=(1,), batch_sizes=(4,), learning_rate_exponents=(-2.0, -2.0))
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def write_arc(folder: Path) -> Path:
    """Questions whose right choice is always the word "yes", in AI2's form."""
    for level in ("ARC-Easy", "ARC-Challenge"):
        (folder / level).mkdir(parents=True)
        for part, count in (("Train", 24), ("Test", 8)):
            lines = []
            for i in range(count):
                choices = [
                    {"text": "yes" if j == i % 4 else "no", "label": str(j + 1) if i % 2 else "ABCD"[j]}
                    for j in range(4)
                ]
                source = ("Mercury_7", "MCAS_2000_", "Mercury_SC_", "AKDE&ED_2008_")[i % 4]
                lines.append(
                    {
                        "id": f"{source}{i}",
                        "question": {"stem": "is it so", "choices": choices},
                        "answerKey": choices[i % 4]["label"],
                    }
                )
            (folder / level / f"{level}-{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def arc(tmp_path: Path) -> Path:
    return write_arc(tmp_path / "arc")


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "A", "B", "C", "D", "E", ".", ":", "Question", "Answer", "yes", "no", "is", "it", "so"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert len(words) <= vocabulary
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<pad>")


def write_qwen(folder: Path) -> Path:
    """A randomly initialised Qwen2 of two narrow layers."""
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=16, **TINY)).save_pretrained(folder)
    tokenizer(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen") / "tiny-qwen2")


def test_questions_and_their_sources(arc: Path) -> None:
    questions = read_questions(arc, "Train")
    assert len(questions) == 48 and {q.source for q in questions} == {"Mercury", "MCAS", "AKDE&ED"}
    assert all(q.choices[q.answer] == "yes" for q in questions), "labels are letters or numbers"


def test_the_accuracy_is_of_challenge_questions_alone(
    arc: Path, base: Path, tmp_path: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = arc / "ARC-Challenge" / "ARC-Challenge-Test.jsonl"
    path.write_text(path.read_text().replace("is it so", "so it is"))
    measured: list[set[str]] = []

    def measure(self: Reader, model: object, questions: list[Question]) -> tuple[float, float]:
        measured.append({question.stem for question in questions})
        return 0.0, 0.0

    monkeypatch.setattr(Reader, "measure", measure)
    list(build_arc(RECIPE, str(base), arc, tmp_path / "zoo", count=1, machine=Machine()))
    assert measured == [{"is it so"}, {"so it is"}]


def test_missing_and_broken_files_are_named(arc: Path) -> None:
    path = arc / "ARC-Easy" / "ARC-Easy-Test.jsonl"
    path.write_text('{"id": "Mercury_1"}')
    with pytest.raises(DataMissingError, match="line 1"):
        read_questions(arc, "Test")
    path.unlink()
    with pytest.raises(DataMissingError, match="ARC-Easy-Test"):
        read_questions(arc, "Test")


def test_hyperparameters_follow_table_8() -> None:
    drawn = [Hyperparameters.draw(ARC, seed, [f"s{i}" for i in range(19)]) for seed in range(300)]
    assert all(
        1e-5 <= h.learning_rate <= 1e-3 and 1e-6 <= h.weight_decay <= 1e-2 and 0 <= h.lora_dropout <= 0.1 for h in drawn
    )
    assert {h.epochs for h in drawn} == {2, 3, 4} and {h.batch_size for h in drawn} == {32, 64, 128}
    assert {len(h.dropped) for h in drawn} == set(range(1, 20))


def test_a_zoo_of_language_models(arc: Path, base: Path, tmp_path: Path, in_threads: None) -> None:
    out = tmp_path / "zoo"
    with pytest.raises(Stopped, match="goes on"):
        list(build_arc(RECIPE, str(base), arc, out, count=2, machine=Machine(), reporter=Reporter(stop=lambda: True)))
    assert len(list(build_arc(RECIPE, str(base), arc, out, count=2, machine=Machine()))) == 1
    assert len(list(build_arc(RECIPE, str(base), arc, out, count=3, machine=Machine()))) == 1, (
        "finished ones are left alone"
    )
    zoo = Zoo.open(out)
    assert len(zoo) == 3 and not zoo.unjoined_labels and {e.ranks for e in zoo.entries} == {(4,)}
    assert all(e.modules == 2 * 2 for e in zoo.entries), "k and v of both layers"
    labels = pd.read_csv(out / "labels.csv")
    assert (labels["saw Mercury"] == 1).all() and (labels.filter(like="saw ").sum(axis=1) < 3).all()


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="no causal language model"):
        Reader(str(tmp_path), "cpu", "no")


def test_the_letter_of_an_absent_choice_is_never_an_answer(base: Path) -> None:
    reader = Reader(str(base), "cpu", "no")
    three = Question("Mercury", "is it so", ("yes", "no", "no"), 0)
    losses, _ = reader.losses(reader.model, [three])
    with torch.no_grad():
        logits = reader.model(**reader.tokenizer([three.prompt], return_tensors="pt")).logits[0, -1, reader.letters[:3]]
    torch.testing.assert_close(losses[0], torch.logsumexp(logits, 0) - logits[0])
