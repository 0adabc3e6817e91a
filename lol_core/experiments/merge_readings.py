"""What is asked of a merge of two LoRAs, and how its answer is read: pictures by a judge, questions by their loss."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, combinations, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lol_core.collections.durable import replace_file
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.core.progress import SILENT, Reporter
from lol_core.finetuning.people import ATTRIBUTES
from lol_core.formats.writing import write
from lol_core.insight.generation import Painter, Sampling

if TYPE_CHECKING:
    import pandas as pd

    from lol_core.finetuning.class_reader import ClassReader
    from lol_core.finetuning.judge import Judge

HIDDEN = ("Wearing_Hat", "Long_Hair")
"""A hat hides hair, so both are never seen."""
PERSON = ("person", "celebrity")
PLACES = ("in a park", "on the beach", "in a city", "at night", "in the snow", "in a desert", "on a red background")
SEEDS = 8
"""Pictures drawn from the bare prompt, each from noise of its own."""


@dataclass(frozen=True)
class Pair:
    """Two LoRAs, and what each has that the other has not: an attribute, classes, or sources."""

    one: str
    two: str
    of_one: tuple[str, ...]
    of_two: tuple[str, ...]
    prompt: str = ""


class Reading(ABC):
    """One sample zoo's question. title: what is measured; less: whether less of it is better."""

    zoo_name: ClassVar[str]
    title: ClassVar[str]
    second: ClassVar[str]
    less: ClassVar[bool] = False

    def __init__(self, samples: Path, work: Path, small: bool = False, reporter: Reporter = SILENT):
        self.samples, self.work, self.small, self.reporter = samples, work, small, reporter
        self.zoo = Zoo.open(samples / self.zoo_name)

    @abstractmethod
    def candidates(self, order: np.random.Generator) -> Iterator[Pair]:
        """Pairs in a random order, which may share LoRAs."""

    def others(self, order: np.random.Generator) -> Iterator[Pair]:
        """Pairs that a merger may be trained on."""
        return self.candidates(order)

    @abstractmethod
    def read(self, lora: LoRA | None, pair: Pair) -> tuple[float, float]:
        """The two numbers of a LoRA, of the base model alone where it is None."""

    def pairs(self, count: int) -> list[Pair]:
        """The first `count` pairs of a fixed random order in which no LoRA stands twice."""
        chosen: list[Pair] = []
        used: set[str] = set()
        for pair in self.candidates(np.random.default_rng(19)):
            if not used & {pair.one, pair.two}:
                used |= {pair.one, pair.two}
                chosen.append(pair)
            if len(chosen) == count:
                break
        return chosen


class Pictures(Reading):
    """Read from what is drawn."""

    @cached_property
    def painter(self) -> Painter:
        for noisy in ("diffusers", "peft"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        return Painter(self.samples / "small-diffusion")

    def draw(self, lora: LoRA | None, prompts: Sequence[str], seeds: int = 1) -> list[Image.Image]:
        """A picture for each prompt and seed, as the zoo's previews are drawn."""
        path = None
        if lora is not None:
            path = self.work / f"{self.zoo_name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda new: write(lora, new, "diffusers", torch.float32))
        steps = 1 if self.small else 6
        samplings = [
            Sampling(seed=seed, steps=steps, guidance=3.0) for seed in range(1, 1 + (1 if self.small else seeds))
        ]
        return [image for each in samplings for image in self.painter.draw(path, prompts, each, keep=False)]


class Faces(Pictures):
    """Two people with one attribute each that the other lacks."""

    zoo_name = "faces"
    title = "pictures with both attributes"
    second = "with each of the two, on average"

    @cached_property
    def judge(self) -> Judge:
        from lol_core.finetuning.judge import Judge  # imports diffusers

        return Judge.load(self.samples / "small-judge")

    @property
    def strong(self) -> pd.DataFrame:
        """The labels of those that are fine-tuned for long enough, and as a person, to draw theirs."""
        labels = self.zoo.labels
        return labels[(labels["learning_rate"] >= 0.006) & (labels["steps"] >= 133) & labels["prompt"].isin(PERSON)]

    def candidates(self, order: np.random.Generator) -> Iterator[Pair]:
        """Of strong ones, with the same word for both."""
        strong = self.strong
        questions = [pair for pair in combinations(ATTRIBUTES, 2) if pair != HIDDEN]
        rows = {str(id): strong.loc[id].to_dict() for id in order.permutation(strong.index)}
        for number, (one, first) in enumerate(rows.items()):
            a, b = questions[number % len(questions)]
            if (first[a], first[b]) == (1, 0):
                for two, second in rows.items():
                    if second["prompt"] == first["prompt"] and (second[a], second[b]) == (0, 1):
                        yield Pair(one, two, (a,), (b,), str(first["prompt"]))

    def judged(self, lora: LoRA | None, word: str) -> torch.Tensor:
        """How sure the judge is of each attribute in a picture at each place: (places, attributes)."""
        return self.judge.probabilities(self.draw(lora, [f"a {word} {place}" for place in PLACES]))

    def read(self, lora: LoRA | None, pair: Pair) -> tuple[float, float]:
        places = [ATTRIBUTES.index(name) for name in (*pair.of_one, *pair.of_two)]
        shown = (self.judged(lora, pair.prompt)[:, places] > 0.5).double()
        return float(shown.prod(1).mean()), float(shown.mean())


class Emojinette(Pictures):
    """Two LoRAs of two classes each, none in common."""

    zoo_name = "emojinette"
    title = "classes of the union drawn"
    second = "pictures of one of them"

    @cached_property
    def reader(self) -> ClassReader:
        """Trained where there is none yet; in a small run one that knows nothing."""
        from lol_core.finetuning.class_reader import ClassReader, train_class_reader  # imports diffusers

        if self.small:
            return ClassReader().eval()
        place, drawings = self.work / "class_reader", self.samples / "pictures" / "drawings.json"
        if not (place / "model.safetensors").is_file():
            part = self.reporter.part(0, 1, "A reader of classes: ")
            train_class_reader(place, self.samples / "small-diffusion", drawings, place / "work", reporter=part)
        return ClassReader.load(place)

    def candidates(self, order: np.random.Generator) -> Iterator[Pair]:
        return self._of_classes(order, (2,))

    def others(self, order: np.random.Generator) -> Iterator[Pair]:
        """Of one class or three, so that no judged pair has a LoRA of the same classes."""
        return self._of_classes(order, (1, 3))

    def _of_classes(self, order: np.random.Generator, counts: tuple[int, ...]) -> Iterator[Pair]:
        labels = self.zoo.labels
        names = [str(column) for column in labels if str(column).startswith("has ")]
        shown = dict(zip(labels.index, labels[names].to_numpy() == 1, strict=True))
        has = {
            str(id): tuple(name.removeprefix("has ") for name, there in zip(names, shown[id], strict=True) if there)
            for id in order.permutation(labels.index)
        }
        few = {id: classes for id, classes in has.items() if len(classes) in counts}
        for (one, first), (other, second) in combinations(few.items(), 2):
            if not set(first) & set(second):
                yield Pair(one, other, first, second, "sks photo")

    def read(self, lora: LoRA | None, pair: Pair) -> tuple[float, float]:
        read = self.reader.classes(self.draw(lora, [pair.prompt], SEEDS))
        union = (*pair.of_one, *pair.of_two)
        return float(np.mean([name in read for name in union])), float(np.mean([name in union for name in read]))


class Glosses(Reading):
    """Two fine-tunes of a language model, asked about sources that one saw and the other did not."""

    zoo_name = "glosses"
    title = "loss on both's own sources"
    second = "accuracy there"
    less = True

    @cached_property
    def encoder(self) -> Any:
        from lol_core.finetuning.glosses import Encoder  # imports transformers

        return Encoder.found()

    @cached_property
    def questions(self) -> Callable[[tuple[str, ...]], Any]:
        """Test questions of these sources."""
        return lru_cache(maxsize=1)(lambda sources: self.of_split("test", sources))  # one pair's at a time

    def of_split(self, split: str, sources: tuple[str, ...] | None = None) -> Any:
        """The questions of a split, of these sources or of all."""
        import pandas as pd

        from lol_core.finetuning.glosses import Questions

        table = pd.read_csv(self.zoo.folder / "questions.csv")
        own = table[table["split"] == split]
        if sources is not None:
            own = own[own["source"].isin(sources)]
        return Questions(own.sample(20, random_state=0) if self.small else own, self.encoder)

    def linear(self, name: str) -> Any:
        """ "encoder.layer.3.attention.self.key" → that layer of the encoder."""
        from lol_core.finetuning.glosses import ADAPTED_PROJECTIONS

        parts = name.split(".")
        assert parts[-1] in ADAPTED_PROJECTIONS
        number = int(parts[parts.index("layer") + 1])
        return getattr(self.encoder.model.encoder.layer[number].attention.self, parts[-1])

    def candidates(self, order: np.random.Generator) -> Iterator[Pair]:
        """Of fine-tunes whose validation loss is in the better half."""
        labels = self.zoo.labels
        good = labels[labels["validation_loss"] <= labels["validation_loss"].median()]
        saw = [name for name in map(str, good) if name.startswith("saw ")]
        seen = {str(id): set(compress(saw, row == 1)) for id, row in zip(good.index, good[saw].to_numpy(), strict=True)}
        ids = [str(id) for id in order.permutation(good.index)]
        for one, two in zip(ids[::2], ids[1::2], strict=False):
            of_one, of_two = (
                tuple(name.removeprefix("saw ") for name in saw if name in seen[a] - seen[b])
                for a, b in ((one, two), (two, one))
            )
            if of_one and of_two:
                yield Pair(one, two, of_one, of_two)

    def others(self, order: np.random.Generator) -> Iterator[Pair]:
        """As `candidates`, in eight orders."""
        return chain.from_iterable(self.candidates(order) for _ in range(8))

    def read(self, lora: LoRA | None, pair: Pair) -> tuple[float, float]:
        """Loss and accuracy on either's own sources, averaged over the two."""
        before: list[tuple[Any, torch.Tensor]] = []
        questions = self.questions((*pair.of_one, *pair.of_two))
        try:
            for layer in lora.layers if lora is not None else ():
                linear = self.linear(layer.name)
                before.append((linear, linear.weight.data))
                linear.weight.data = linear.weight.data + layer.delta()
            loss, right = questions.measure(self.encoder)
        finally:
            for linear, weight in before:
                linear.weight.data = weight
        sides = [torch.from_numpy(np.isin(questions.source, own)) for own in (pair.of_one, pair.of_two)]
        means = [(loss[side].mean().item(), right[side].float().mean().item()) for side in sides]
        return sum(m[0] for m in means) / 2, sum(m[1] for m in means) / 2


READINGS: tuple[type[Reading], ...] = (Faces, Emojinette, Glosses)
