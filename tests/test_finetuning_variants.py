"""Each variant of LoRA, really trained for a few steps by its library and read back."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lol_core.collections.zoo import Zoo
from lol_core.core.header import Kind
from lol_core.core.parametrisation import Hadamard, Kronecker, Tucker
from lol_core.core.symmetry import TOLERANCES
from lol_core.errors import LoLError
from lol_core.experiments import variants as experiment
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept
from lol_core.experiments.variants import MERGE, NONE, ORBIT, PROMISE, READ, SCORE, STORED
from lol_core.finetuning import side_by_side, source_adapters, upcycling
from lol_core.finetuning.adapters import build
from lol_core.finetuning.glosses import Encoder
from lol_core.finetuning.machine import Machine
from lol_core.finetuning.source_adapters import LAYER, Adapter, FusedAttention
from lol_core.finetuning.variants import COPIES, VARIANTS, Learns, Library, Variant, named, recipe_of
from tests.conftest import ROOT, SAMPLE_ZOO
from tests.tiny_diffusion import RECIPE, base_folder, celeba

__all__ = ["base_folder", "celeba"]
OF_PEOPLE, OF_SOURCES = (
    tuple(variant for variant in VARIANTS if variant.place.learns is learns)
    for learns in (Learns.PERSON, Learns.SOURCES)
)
HERE = [v for v in OF_SOURCES if v.library is not Library.LORALIB or importlib.util.find_spec("loralib")]
needs_loralib = pytest.mark.skipif(len(HERE) < len(OF_SOURCES), reason="loralib is not installed")


def in_this_process(
    machine: Machine,
    start: Callable[..., None],
    started: tuple[Any, ...],
    work: Callable[..., Any],
    todo: Sequence[tuple[Any, ...]],
) -> Iterator[Any]:
    start(*started, device="cpu")
    return (work(*arguments) for arguments in todo)


def check_row(variant: Variant, zoo: Zoo, folder: Path) -> experiment.Row:
    """What the table says of a zoo of one LoRA: read as its library merges it, and moved by nothing in its group."""
    row = experiment.of_zoo(variant, zoo, Kept(folder / "kept.jsonl", {}))
    assert len(zoo) == 1 and row.words[READ] == "1 of 1" and "1 LoRAs, fewer than 30" in row.words[SCORE]
    assert row.numbers[MERGE][0] <= TOLERANCES[torch.float32], variant.title  # of a small ΔW beside W
    assert row.numbers[PROMISE][0] <= TOLERANCES[torch.float64] < 1e-3 < row.numbers[NONE][0], variant.title
    assert all(column in row.words or column in row.numbers for column in experiment.COLUMNS)
    return row


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_every_variant_is_trained_by_its_library_and_read_as_that_merges_it(
    base_folder: Path, celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "spread", in_this_process)
    (tmp_path / "small-diffusion").symlink_to(base_folder)
    out = tmp_path / "variants"
    shutil.copytree(celeba, out / "people-1")
    recipe = replace(RECIPE, base="tiny", steps=(2,), batch_sizes=(1,))

    def made(count: int) -> list[str]:
        rows = build(tmp_path, out, OF_PEOPLE, 1, machine=Machine(), recipe=recipe)
        return [key for key, _ in islice(rows, count)]

    assert [*made(3), *made(20)] == [variant.key for variant in OF_PEOPLE], "what was stopped goes on"
    rows = {}
    for variant in OF_PEOPLE:
        zoo = Zoo.open(out / variant.key)
        check_row(variant, zoo, tmp_path)
        rows[variant.key] = zoo.load(zoo.ids[0])
    kinds = {"loha": Hadamard, "lokr": Kronecker, "lokr-factorised": Kronecker, "locon-mid": Tucker}
    for key, kind in kinds.items():
        assert all(isinstance(layer.parametrisation, kind) for layer in rows[key].layers), key
    assert all(layer.magnitude is not None for layer in rows["dora"].layers)
    plain = experiment.structure("LoRA", [rows["lora"]])
    assert plain.words[STORED] == f"{rows['lora'].parameters:,}"
    assert plain.words[ORBIT] == str(16 * len(rows["lora"].layers))


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights and a vocabulary of letters, in six layers like the sentence encoder."""
    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    transformers.BertTokenizer(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": LAYER + 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokens), initializer_range=0.3, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_variants_on_sources_are_trained_by_their_libraries_and_read_as_those_merge_them(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "spread", in_this_process)
    monkeypatch.setattr(upcycling, "EPOCHS", 1)
    (tmp_path / "glosses").mkdir()
    table = pd.read_csv(SAMPLE_ZOO / "questions.csv")
    few = table[table["source"].isin(["noun.person", "noun.food"])].groupby(["source", "split"]).head(5)
    few.to_csv(tmp_path / "glosses" / "questions.csv", index=False)
    out = tmp_path / "variants"

    def made(count: int) -> list[str]:
        rows = source_adapters.build(str(tiny_bert), tmp_path, out, HERE, count=1, machine=Machine())
        return [key for key, _ in islice(rows, count)]

    assert [*made(1), *made(9)] == [variant.key for variant in HERE], "what was stopped goes on"
    whole = Encoder(tiny_bert, LAYER)
    for variant in HERE:
        zoo = Zoo.open(out / variant.key)
        row = check_row(variant, zoo, tmp_path)
        numbers = sum(t.numel() for t in load_file(out / variant.key / zoo.ids[0]).values())
        assert row.words[STORED] == f"{numbers:,}", variant.title
        assert set(experiment.TARGETS[Learns.SOURCES]) <= set(zoo.labels.columns)
        if variant.key != "experts":
            assert sum(p.numel() for p in Adapter(whole, variant, 0).parameters) == numbers, "nothing else is trained"
    experts = Zoo.open(out / "experts")
    assert [layer.kind for layer in experts.load(experts.ids[0]).layers] == [Kind.EXPERTS] * 2
    assert "trained on" in " ".join(experiment.notes(out / "upcycled" / "measured.json"))
    apart = json.loads((out / "upcycled" / "measured.json").read_text())
    assert apart["up_proj apart"] > 0 and apart["down_proj apart"] > 0


@needs_loralib
def test_a_fused_projection_computes_what_the_three_do(tiny_bert: Path) -> None:
    check_function_kept(tiny_bert, lambda layer: setattr(layer.attention, "self", FusedAttention(layer.attention.self)))


def test_copied_experts_begin_as_the_feed_forward(tiny_bert: Path) -> None:
    check_function_kept(tiny_bert, None)


def check_function_kept(base: Path, change: Callable[[Any], None] | None) -> None:
    encoder = Encoder(base, LAYER)
    texts = encoder.lower(["a b c", "d", "e f"])
    with torch.no_grad():
        before = encoder.embed(texts)
        if change is None:
            upcycling.mixture(encoder, COPIES)
        else:
            change(encoder.model.encoder.layer[LAYER])
        torch.testing.assert_close(encoder.embed(texts), before, rtol=1e-4, atol=1e-5)


def test_a_variant_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(LoLError, match="No variant dorra. There are lora, pissa"):
        named(["dorra"])
    assert [variant.key for variant in named(["loha"])] == ["loha"]


def test_the_recipe_is_that_of_faces_cut_short() -> None:
    recipe = recipe_of(ROOT / "sample_loras")
    assert (recipe.name, recipe.steps, recipe.batch_sizes, recipe.prompts) == ("variants", (40,), (1,), ("person",))
    assert len(recipe.attributes) == 5 and recipe.images_per_subject == 21


def test_the_page_of_variants_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(LoLError, match="No zoo of variants lies in .*variants: `python -m lol_core finetune variants`"):
        experiment.run(Context(SAMPLE_ZOO.parent, tmp_path / "fits", work=tmp_path))
