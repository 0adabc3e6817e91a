"""What would be trained, checked before anything long starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lol_core.collections.columns import structures
from lol_core.collections.source import Source
from lol_core.collections.splits import parts_of
from lol_core.core.batch import WeightSpec, shared_spec
from lol_core.core.header import distinct_headers
from lol_core.core.naming import common_names
from lol_core.errors import ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.devices import find_device
from lol_core.learning.memory import check_memory
from lol_core.learning.only import chosen, kind_of_module
from lol_core.learning.tasks import Task, make_task

ONLY = " To take some, name them, such as --only rank=4, or by *Only LoRAs with* on the page Train."


@dataclass(frozen=True)
class Plan:
    """What would be trained, checked before anything long starts.

    left_out_modules: modules that not all LoRAs have, which the model will not see; left_out: LoRA → why it takes no
    part.
    """

    task: Task
    spec: WeightSpec
    split: dict[str, list[str]]
    left_out: dict[str, str]
    left_out_modules: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        return [id for part in self.split.values() for id in part]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Plan:
        """What a checkpoint was trained by, to go on with it."""
        return cls(checkpoint.task, checkpoint.spec, checkpoint.split, checkpoint.left_out, checkpoint.left_out_modules)


def plan(
    zoo: Source,
    targets: Sequence[str],
    config: TrainingConfig,
    kind: type[Task] | None = None,
    *,
    ids: Sequence[str] | None = None,
) -> Plan:
    """Check labels, modules, split, memory and device. `ids`: the LoRAs to take, by default all that meet
    `config.only`.

    Raises TaskError or ModelError with what is wrong and what to do.
    """
    if zoo.labels_problem:
        raise TaskError(zoo.labels_problem)
    if not len(zoo):
        refused = "".join(f" {entry.path} was refused: {entry.reason}" for entry in zoo.refused[:1])
        raise TaskError(f"There is no LoRA in {zoo.name}.{refused}")
    wanted = chosen(zoo, config.only) if ids is None else list(ids)
    if unknown := [id for id in wanted if id not in zoo.by_id]:
        raise TaskError(f"{zoo.name} has no LoRA {unknown[0]!r}. Its ids are such as {zoo.ids[0]!r}.")
    task, usable = make_task(zoo.labels.loc[wanted], targets, kind)
    labelled = set(usable)
    left_out = {id: "It has no usable label." for id in wanted if id not in labelled}
    entries = structures(zoo, usable)
    try:
        spec = shared_spec(entries)
    except ModelError as error:
        everyone = [zoo.by_id[id] for id in usable]
        bases = Counter(entry.suggested_base or entry.base_model or "unknown base" for entry in everyone)
        held = ", ".join(f"{count} of {base}" for base, count in bases.most_common(4))
        kinds = Counter(kind_of_module(entry.headers[0]) for entry in everyone if entry.headers)
        if len(bases) == 1 and len(kinds) > 1:
            held += f", but their modules are of other kinds ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"
        raise ModelError(f"{error} Here are {held}. Those without a label take no part.{ONLY}") from error
    seen: dict[str, str] = {}
    for headers in distinct_headers(entries):
        names = [module.name for module in headers]
        seen = dict(zip(common_names(names), names, strict=True)) | seen
    read = set(common_names(module.name for module in spec.modules))
    left_out_modules = tuple(sorted(name for common, name in seen.items() if common not in read))
    split = parts_of(
        zoo,
        usable,
        fractions=config.fractions,
        seed=config.seed,
        group=config.group_column,
        split=config.split_column,
    )
    placed = {id for part in split.values() for id in part}
    left_out |= {id: f"{config.split_column!r} names no part for it." for id in usable if id not in placed}
    task.fitted(zoo.labels.loc[split["train"]], config.class_weights)
    check_memory(config.model, spec, task.outputs, config.shape, device=find_device(config.device))
    return Plan(task, spec, split, left_out, left_out_modules)
