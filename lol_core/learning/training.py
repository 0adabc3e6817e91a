"""From a plan to a checkpoint: fitted, measured beside its controls, saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from lol_core.collections.source import Source
from lol_core.core.batch import stack
from lol_core.core.progress import SILENT, Reporter
from lol_core.errors import ModelError, TaskError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.evaluation import bootstrap_interval, control_predictions, norm_features, paired_differences
from lol_core.learning.factors import Factors, control_features
from lol_core.learning.fit import Fit
from lol_core.learning.known import FEWEST, Known, Seen
from lol_core.learning.models import make_model
from lol_core.learning.parallel import first_here, parallel
from lol_core.learning.parts import parts_here
from lol_core.learning.plan import Plan, plan
from lol_core.learning.state import SavedState
from lol_core.learning.stream import at_once, parts, readable
from lol_core.learning.tasks import labels_digest

__all__ = ["Plan", "measure", "plan", "remember", "train"]


def train(
    zoo: Source,
    plan: Plan,
    config: TrainingConfig,
    out: Path | str,
    *,
    reporter: Reporter = SILENT,
    resume: bool = False,
) -> Checkpoint:
    """Fit, evaluate and save a model into the folder `out`; returns its checkpoint.

    When the reporter says to stop, the last finished epoch is saved, the best model so far is measured and the
    checkpoint marked unfinished; with `resume`, training goes on from there and ends as if it had never stopped. Of the
    processes that `accelerate launch` starts, each computes a share of every batch, and the first one writes. Raises
    TaskError, ModelError or CheckpointError, and Stopped when nothing was trained yet.
    """
    out, together = Path(out), parallel(config.device)
    reporter = reporter if together.first else Reporter(stop=reporter.stop)
    state = SavedState(out, config, zoo.fingerprint)
    if together.first or resume:
        state.open(resume)
    dtype, reading = config.storage.dtype, reporter.part(0.0, 0.1)
    factors = first_here(together, lambda: Factors(zoo, plan.spec, plan.ids, reporter=reading, dtype=dtype))
    split = {part: [id for id in ids if id in factors.place] for part, ids in plan.split.items()}
    if empty := [part for part, ids in split.items() if not ids]:
        raise TaskError(
            f"No readable LoRA is left for the {empty[0]} part. First reason: {next(iter(factors.left_out.values()))}"
        )
    known = zoo.labels.loc[[id for ids in split.values() for id in ids]]
    state.learn(labels_digest(known, plan.task.targets))
    fit = Fit.of(factors, split, plan.task, zoo.labels, config=config, together=together)
    _check_kept(fit)
    finished = fit.run(reporter.part(0.1, 0.95), state)
    history = tuple(fit.history)
    shuffled = None
    if config.shuffled_control and finished:
        reporter.show("Fitting the shuffled-label control", 0.96, history)
        control = fit.shuffled()
        control.run(Reporter(stop=reporter.stop))
        shuffled = fit.task.decode(control.outputs(split["test"]))
    reporter.show("Measuring", 0.98, history)
    checkpoint = Checkpoint(
        fit.model.cpu().eval(),
        fit.task,
        config,
        split,
        zoo.name,
        zoo.fingerprint,
        digests={id: zoo.by_id[id].digest for part in split.values() for id in part},
        bases=tuple(sorted({base for part in split.values() for id in part if (base := zoo.by_id[id].base_model)})),
        history=fit.history,
        left_out=plan.left_out | factors.left_out,
        left_out_modules=plan.left_out_modules,
        finished=finished,
        labels=state.labels,
    )
    if together.first:
        measure(checkpoint, zoo, factors, shuffled)
        checkpoint.save(out)
    together.wait()
    if not together.first:
        return Checkpoint.load(out)
    reporter.show("Done" if finished else "Stopped", 1.0, history)
    return checkpoint


@torch.no_grad()
def _check_kept(fit: Fit) -> None:
    """Raises ModelError where a model that is read back, from its parameters and buffers alone, would not be the one
    that is fitted. One that memorizes has nothing to say yet.
    """
    if fit.model.memorizes:
        return
    with torch.random.fork_rng():  # weights drawn for nothing
        again = make_model(fit.config.model, fit.spec, fit.task.outputs, fit.config.shape).to(fit.device)
    again.load_state_dict(fit.model.state_dict())
    batch = fit.factors.batch(fit.split["train"][:2]).to(fit.device)
    one, other = (model.eval().embed(batch).float() for model in (fit.model, again))
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.nan_to_num().abs().max()), equal_nan=True):
        raise ModelError(
            f"{fit.model.title} says something else of the same LoRAs once it is made anew from its parameters and"
            " buffers, which are all that a checkpoint keeps. Register what `prepare` sets by `register_buffer`, and"
            " draw nothing at random in `features` but where `self.training`."
        )


def measure(checkpoint: Checkpoint, zoo: Source, factors: Factors, shuffled: np.ndarray | None = None) -> None:
    """Fill in metrics of all parts, the interval of the test score, the controls, by how much the model exceeds them,
    and what it keeps of the LoRAs. shuffled: what the same model fitted to shuffled labels predicts of the test part.
    """
    task, split, seed, labels = checkpoint.task, checkpoint.split, checkpoint.config.seed, zoo.labels
    predicted, latents = {}, {}
    with torch.no_grad():
        for part, ids in split.items():
            read = [checkpoint.model.read(batch) for batch in factors.stream(parts(ids, 64))]
            outputs, latents[part] = (torch.cat(some) for some in zip(*read, strict=True))
            predicted[part] = task.decode(outputs)
            checkpoint.metrics[part] = task.score(labels.loc[ids], predicted[part])
    truth, ours = labels.loc[split["test"]], predicted["test"]
    known, ids = split["train"] + split["validation"], [id for part in split.values() for id in part]
    features = control_features(zoo, factors, ids)
    norms = {
        part: torch.from_numpy(features["norms only"].loc[some].to_numpy(copy=True)) for part, some in split.items()
    }
    trained, *held_out = (Seen(latents[part], norms[part]) for part in ("train", "validation", "test"))
    checkpoint.known = Known.of(trained, Seen.joined(held_out))
    controls = control_predictions(task, labels.loc[ids], known, split["test"], features=features, seed=seed) | (
        {} if shuffled is None else {"shuffled labels": shuffled}
    )
    low, high = bootstrap_interval(task, truth, ours, seed=seed)
    checkpoint.interval = None if math.isnan(low) else (low, high)
    checkpoint.controls = {name: task.score(truth, values) for name, values in controls.items()}
    checkpoint.differences = paired_differences(task, truth, ours, controls, seed=seed)


@torch.no_grad()
def remember(checkpoint: Checkpoint, zoo: Source) -> None:
    """Have an older checkpoint know the LoRAs that it was trained on and those held out, read from its zoo. Raises
    TaskError when too few are there.
    """
    seen = []
    parts_of = parts_here(checkpoint, zoo)
    for wanted in ({"train"}, {"validation", "test"}):
        ids, some = [id for id, part in parts_of.items() if part in wanted], list[Seen]()
        for few in parts(ids, at_once(zoo, ids)):
            loras, _ = readable((id, zoo.reader(id)) for id in few)
            if loras:
                batch = stack([*loras.values()], checkpoint.spec)
                latents = checkpoint.model.embed(batch.to(checkpoint.model.device)).cpu()
                some.append(Seen(latents, torch.from_numpy(norm_features(batch))))
        seen.append(Seen.joined(some))
    checkpoint.known = Known.of(*seen)
    if checkpoint.known is None:
        raise TaskError(
            f"Of the LoRAs the model was trained on {len(seen[0].latent)} are in {zoo.name}; at least {FEWEST} are"
            " needed to know what is usual."
        )
