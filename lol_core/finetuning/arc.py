"""The paper's language zoo (appendix D.2, Qwen2-ARC-LoRA): a causal language model fine-tuned on ARC with some of the
sources of questions left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import DataMissingError
from lol_core.finetuning.machine import GOES_ON, Machine, spread
from lol_core.finetuning.recipes import Hyperparameters, LanguageRecipe
from lol_core.finetuning.rows import append_row

ARC = LanguageRecipe(name="arc")
COUNT = 2000
VALIDATION_SHARE = 0.1
ALPHA_PER_RANK = 2
"""Neither share nor alpha is stated in the paper or in the authors' code; both are our choice."""
KEPT = "Mercury"
"""The source that is never left out: it holds most of the questions."""
LAYOUT = "ARC as AI2 distributes it: ARC-Easy/ARC-Easy-Train.jsonl, ARC-Easy-Test.jsonl, and the same of ARC-Challenge"


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `answer` is the index of the right choice."""

    source: str
    stem: str
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        listed = "\n".join(f"{'ABCDE'[i]}. {choice}" for i, choice in enumerate(self.choices))
        return f"Question: {self.stem}\n{listed}\nAnswer:"


LEVELS = ("ARC-Easy", "ARC-Challenge")


def read_questions(data: Path, part: str, levels: Sequence[str] = LEVELS) -> list[Question]:
    """The questions of a part, Train or Test, both easy and challenge by default. The source is the name that a
    question's id begins with.

    Raises:
        DataMissingError: a file is missing, or a line of it is no ARC question.
    """
    questions = []
    for level in levels:
        path = data / level / f"{level}-{part}.jsonl"
        if not path.is_file():
            raise DataMissingError(f"{path}: not found. Expected {LAYOUT}.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                content = json.loads(line)
                choices = content["question"]["choices"]
                name = re.match(r"[A-Za-z&]+", content["id"])
                questions.append(
                    Question(
                        source=name[0] if name else "other",
                        stem=content["question"]["stem"],
                        choices=tuple(choice["text"] for choice in choices),
                        answer=[choice["label"] for choice in choices].index(content["answerKey"]),
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataMissingError(
                    f"{path}, line {number}: no ARC question ({error!r}). Expected id, question.stem, question.choices,"
                    " answerKey."
                ) from error
    return questions


class Reader:
    """A causal language model that answers by the letter it finds likeliest after the prompt."""

    def __init__(self, base: str, device: str, mixed_precision: str):
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataMissingError(
                f"{base}: no causal language model there ({reason}). The paper's is Qwen/Qwen2-1.5B."
            ) from error
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.tokenizer.padding_side = "left"
        self.letters = torch.tensor(
            [self.tokenizer(f" {letter}", add_special_tokens=False).input_ids[-1] for letter in "ABCDE"], device=device
        )
        self.accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")
        self.device = device

    def losses(self, model: Any, questions: list[Question]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the right letter among the choices' letters, and whether it is the likeliest; both (k,)."""
        tokens = self.tokenizer(
            [q.prompt for q in questions], padding=True, truncation=True, max_length=512, return_tensors="pt"
        ).to(self.device)
        with self.accelerator.autocast():
            logits = model(**tokens).logits[:, -1, self.letters].float()
        offered = torch.tensor([[i < len(q.choices) for i in range(5)] for q in questions], device=self.device)
        logits = logits.masked_fill(~offered, -torch.inf)
        right = torch.tensor([q.answer for q in questions], device=self.device)
        return torch.nn.functional.cross_entropy(logits, right, reduction="none"), logits.argmax(1) == right

    @torch.no_grad()
    def measure(self, model: Any, questions: list[Question]) -> tuple[float, float]:
        """Mean loss and accuracy."""
        parts = [self.losses(model, questions[i : i + 32]) for i in range(0, len(questions), 32)]
        return torch.cat([p[0] for p in parts]).mean().item(), torch.cat([p[1] for p in parts]).float().mean().item()


def finetune(
    reader: Reader, recipe: LanguageRecipe, splits: dict[str, list[Question]], drawn: Hyperparameters, *, folder: Path
) -> dict[str, Any]:
    """One LoRA: trained, stored as a PEFT folder, measured. Returns its row of labels."""
    kept = [q for q in splits["train"] if q.source not in drawn.dropped]
    torch.manual_seed(drawn.seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=ALPHA_PER_RANK * recipe.rank,
        lora_dropout=drawn.lora_dropout,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    model: PeftModel = get_peft_model(reader.model, config)
    recipe.start.settle(model)
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        steps = drawn.epochs * -(-len(kept) // drawn.batch_size)
        optimizer = torch.optim.AdamW(parameters, lr=drawn.learning_rate, weight_decay=drawn.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        total = 0.0
        model.train()
        for _ in range(drawn.epochs):
            total = 0.0
            for batch in torch.randperm(len(kept)).split(drawn.batch_size):
                loss = reader.losses(model, [kept[i] for i in batch])[0].mean()
                optimizer.zero_grad()
                reader.accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
        model.eval()
        validation_loss, _ = reader.measure(model, splits["validation"])
        _, accuracy = reader.measure(model, splits["test"])
        model.save_pretrained(str(folder))
    finally:
        reader.model = model.unload()
        reader.model.requires_grad_(False)
    sources = sorted({q.source for q in splits["train"]})
    row = {
        "validation_loss": validation_loss,
        "accuracy": accuracy,
        "final_train_loss": total / len(kept),
        "train_questions": len(kept),
        "steps": steps,
    }
    row |= {key: value for key, value in asdict(drawn).items() if key != "dropped"}
    return row | {f"saw {source}": int(source not in drawn.dropped) for source in sources}


_worker: dict[str, Any] = {}


def _start(
    recipe: LanguageRecipe, base: str, splits: dict[str, list[Question]], machine: Machine, *, device: str
) -> None:
    torch.set_num_threads(machine.threads)
    _worker.update(recipe=recipe, splits=splits, reader=Reader(base, device, machine.mixed_precision))


def _finetune(out: Path, drawn: Hyperparameters) -> dict[str, Any]:
    name = f"loras/{drawn.seed:04d}"
    return {"lora": name} | finetune(_worker["reader"], _worker["recipe"], _worker["splits"], drawn, folder=out / name)


def build_arc(
    recipe: LanguageRecipe,
    base: str,
    data: Path,
    out: Path,
    *,
    count: int | None,
    machine: Machine,
    reporter: Reporter = SILENT,
) -> Iterator[dict[str, Any]]:
    """Fine-tune LoRAs 1 … count (2,000 by default), those already in `out`/labels.csv left alone; yields each new row
    of labels as it is written. Trained on the easy and the challenge questions; accuracy is of the challenge test part
    (ARC-C) alone. Raises Stopped after a LoRA when the reporter says so.
    """
    train, test = read_questions(data, "Train"), read_questions(data, "Test", LEVELS[1:])
    order = np.random.default_rng(0).permutation(len(train))
    n_validation = max(1, round(VALIDATION_SHARE * len(train)))
    splits = {
        "validation": [train[i] for i in order[:n_validation]],
        "train": [train[i] for i in order[n_validation:]],
        "test": test,
    }
    droppable = sorted({q.source for q in splits["train"]} - {KEPT})
    if not droppable or not any(q.source == KEPT for q in splits["train"]):
        raise DataMissingError(f"{data}: the questions must come from {KEPT} and at least one more source.")
    count = count or COUNT
    labels = out / "labels.csv"
    out.mkdir(parents=True, exist_ok=True)
    done = set(pd.read_csv(labels)["seed"]) if labels.is_file() else set()
    todo = [(out, Hyperparameters.draw(recipe, seed, droppable)) for seed in range(1, count + 1) if seed not in done]
    finished = count - len(todo)
    for row in spread(machine, _start, (recipe, base, splits, machine), _finetune, todo=todo):
        append_row(labels, row)
        finished += 1
        reporter.count("Fine-tuning: LoRA", finished, count)
        yield row
        reporter.check(GOES_ON)
