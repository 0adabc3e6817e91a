from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lol_core.collections.memory import MemorySource
from lol_core.collections.zoo import Zoo
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.core.parametrisation import Kronecker, Whole
from lol_core.core.progress import Progress, Reporter, Stopped
from lol_core.errors import CheckpointError, DivergedError, LoRAFormatError, ModelError, TaskError, ZooError
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import Keep, Schedule, TrainingConfig
from lol_core.learning.factors import Factors
from lol_core.learning.memory import memory_needed
from lol_core.learning.models import MODELS, ModelConfig, make_model
from lol_core.learning.state import SavedState
from lol_core.learning.tasks import Binary
from lol_core.learning.training import Plan, plan, train
from tests.builders import MODULES, random_lora, write_peft, write_zoo

SMALL = ModelConfig(width=16, dropout=0.1)
VARIANTS = ("nearest_spectra", "spectral_sizes", "triplets", "views")
"""Our own small variants of others' models."""
QUICK = TrainingConfig(model_config=SMALL, epochs=6, batch_size=8, patience=0, device="cpu")


def fit(
    zoo: Zoo, out: Path, config: TrainingConfig = QUICK, targets: tuple[str, ...] = ("size",), **options: Any
) -> Checkpoint:
    return train(zoo, plan(zoo, targets, config), config, out, **options)


def weights_of(folder: Path) -> Path:
    return next(folder.glob("model-*.safetensors"))


def stop_after(batches: int) -> Reporter:
    calls = iter(range(10**9))
    return Reporter(stop=lambda: next(calls) >= batches)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in VARIANTS])
@pytest.mark.parametrize("targets", [("size",), ("positive",), ("kind",)])
def test_every_model_learns_every_kind_of_task(
    model: str, targets: tuple[str, ...], synthetic_zoo: Zoo, tmp_path: Path
) -> None:
    checkpoint = fit(synthetic_zoo, tmp_path / "run", replace(QUICK, model=model), targets)
    memorizes = MODELS[model].memorizes
    assert checkpoint.finished and len(checkpoint.history) == (1 if memorizes else 6)
    losses = [row["train_loss"] for row in checkpoint.history]
    assert memorizes or min(losses[1:]) < losses[0]
    assert set(checkpoint.controls) == {"constant", "structure only", "norms only"} and checkpoint.interval is not None
    assert set(checkpoint.metrics) == {"train", "validation", "test"}


@pytest.mark.whole_forests
def test_singular_values_learn_what_is_a_function_of_the_update(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    """The label is log ‖ΔW‖: the norms-only control must find it, and so must a model of singular values."""
    config = replace(QUICK, model="svd", epochs=150, learning_rate=3e-3)
    checkpoint = fit(synthetic_zoo, tmp_path / "run", config)
    assert checkpoint.metrics["test"]["r2"] > 0.6 and checkpoint.controls["norms only"]["r2"] > 0.8
    assert checkpoint.controls["structure only"]["r2"] < 0.1


def test_the_same_seed_gives_the_same_model_and_another_does_not(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    runs = [fit(synthetic_zoo, tmp_path / str(i), replace(QUICK, seed=seed)) for i, seed in enumerate((1, 1, 2))]
    weights = [load_file(weights_of(tmp_path / str(i))) for i in range(3)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert runs[0].history == runs[1].history != runs[2].history
    assert runs[0].split == runs[1].split != runs[2].split


@pytest.mark.parametrize("batches", [10, 15, 20, 35])  # nothing is read a second time
def test_stop_and_resume_end_like_an_uninterrupted_run(batches: int, synthetic_zoo: Zoo, tmp_path: Path) -> None:
    whole = fit(synthetic_zoo, tmp_path / "whole")
    stopped = fit(synthetic_zoo, tmp_path / "parts", reporter=stop_after(batches))
    assert not stopped.finished and len(stopped.history) < 6
    assert "stopped before its end" in (tmp_path / "parts" / "README.md").read_text()
    resumed = fit(synthetic_zoo, tmp_path / "parts", resume=True)
    assert resumed.finished and resumed.history == whole.history and resumed.metrics == whole.metrics
    a, b = (load_file(weights_of(tmp_path / name)) for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_can_be_given_more_epochs(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    whole = fit(synthetic_zoo, tmp_path / "whole", replace(QUICK, epochs=9))
    fit(synthetic_zoo, tmp_path / "parts")
    longer = fit(synthetic_zoo, tmp_path / "parts", replace(QUICK, epochs=9), resume=True)
    assert longer.history == whole.history


def test_resuming_another_run_is_refused(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    fit(synthetic_zoo, tmp_path / "run")
    with pytest.raises(CheckpointError, match="other settings or another collection"):
        fit(synthetic_zoo, tmp_path / "run", replace(QUICK, learning_rate=5e-3), resume=True)
    then = {"config": TrainingConfig("views").to_dict() | {"model": "mvprobe"}, "fingerprint": "f"}
    assert SavedState(tmp_path, TrainingConfig("views"), "f")._same_run(then), "format 1 named it so"
    assert not SavedState(tmp_path, TrainingConfig("views"), "f")._same_run(then | {"format": 2})
    with pytest.raises(CheckpointError, match="nothing to resume"):
        fit(synthetic_zoo, tmp_path / "empty", resume=True)
    (tmp_path / "run" / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="Delete it to start again"):
        fit(synthetic_zoo, tmp_path / "run", resume=True)


@pytest.mark.parametrize("target", ["size", "kind"])
def test_labels_that_have_changed_are_not_mixed_with_those_a_training_began_with(target: str, tmp_path: Path) -> None:
    table = write_zoo(tmp_path / "zoo", 40)
    checkpoint = fit(Zoo.open(tmp_path / "zoo"), tmp_path / "run", targets=(target,))
    table.assign(author="another").sample(frac=1, random_state=0).to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    same = Zoo.open(tmp_path / "zoo")
    assert Checkpoint.load(tmp_path / "run").compare(same) == [], "other columns and the order of rows are no matter"
    train(same, Plan.of(checkpoint), replace(QUICK, epochs=7), tmp_path / "run", resume=True)
    another = [{"size": 100.0, "kind": "middle"}[target], *table[target][1:]]
    table.assign(**{target: another}).to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    changed = Zoo.open(tmp_path / "zoo")
    assert "The labels have changed" in checkpoint.compare(changed)[0]
    with pytest.raises(CheckpointError, match="The labels have changed"):
        train(changed, Plan.of(checkpoint), replace(QUICK, epochs=9), tmp_path / "run", resume=True)
    table.drop(columns=target).to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    assert "The labels have changed" in checkpoint.compare(Zoo.open(tmp_path / "zoo"))[0]


def test_a_stop_while_reading_trains_nothing(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(synthetic_zoo, tmp_path / "run", reporter=stop_after(3))
    assert not (tmp_path / "run" / "checkpoint.json").exists()


def test_early_stopping_keeps_the_best_epoch(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    checkpoint = fit(
        synthetic_zoo, tmp_path / "run", replace(QUICK, model="mlp", epochs=200, patience=4, learning_rate=1e-2)
    )
    losses = [row["validation_loss"] for row in checkpoint.history]
    assert len(losses) < 200 and len(losses) == int(np.argmin(losses)) + 1 + 4
    encoded = checkpoint.task.encode(synthetic_zoo.labels.loc[checkpoint.split["validation"]])
    outputs = checkpoint.outputs([synthetic_zoo.load(id) for id in checkpoint.split["validation"]])
    assert checkpoint.task.loss(outputs, encoded).item() == pytest.approx(min(losses), rel=1e-4)


def test_the_weights_kept_are_those_of_the_epoch_that_was_asked_for(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    for keep in (Keep.BEST_SCORE, Keep.LAST):
        config = replace(QUICK, model="mlp", epochs=40, learning_rate=1e-2, keep=keep)
        checkpoint = fit(synthetic_zoo, tmp_path / keep, config, ("positive",))
        losses, scores = ([row[f"validation_{name}"] for row in checkpoint.history] for name in ("loss", "score"))
        encoded = checkpoint.task.encode(synthetic_zoo.labels.loc[checkpoint.split["validation"]])
        outputs = checkpoint.outputs([synthetic_zoo.load(id) for id in checkpoint.split["validation"]])
        epoch = int(np.argmax(scores)) if keep is Keep.BEST_SCORE else len(losses) - 1
        assert checkpoint.task.loss(outputs, encoded).item() == pytest.approx(losses[epoch], rel=1e-4)
        assert losses[epoch] > 1.01 * min(losses), "another epoch than the usual one"
        assert Checkpoint.load(tmp_path / keep).config.keep is keep


def test_the_learning_rate_rises_and_falls_as_its_schedule_says() -> None:
    config = TrainingConfig(epochs=12, warmup=2, schedule=Schedule.COSINE, learning_rate=1.0)
    rates = [config.rate(epoch) for epoch in range(12)]
    assert rates[:3] == pytest.approx([0.1, 0.55, 1.0]) and rates[-1] == pytest.approx(0.01)
    assert rates[2:] == sorted(rates[2:], reverse=True) and TrainingConfig(learning_rate=0.3).rate(7) == 0.3


def test_progress_only_goes_forward(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    seen: list[Progress] = []
    fit(synthetic_zoo, tmp_path / "run", reporter=Reporter(seen.append))
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert [len(progress.history) for progress in seen][-1] == 6


def test_a_shuffled_control_knows_nothing(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    config = replace(QUICK, model="svd", epochs=150, learning_rate=3e-3, shuffled_control=True)
    checkpoint = fit(synthetic_zoo, tmp_path / "run", config)
    assert checkpoint.controls["shuffled labels"]["r2"] < 0.3 < checkpoint.metrics["test"]["r2"]


def test_modules_that_not_all_have_are_reported(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 20)
    write_peft(tmp_path / "lora000", random_lora(MODULES[:2]))
    write_peft(tmp_path / "lora001", random_lora([*MODULES, ("extra", 4, 4, 2)]))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    planned = plan(Zoo.open(tmp_path), ["size"], QUICK)
    assert len(planned.spec.modules) == 2 and planned.left_out_modules == ("extra", "layer.1.attention.self.key")


def test_what_is_left_out_stands_in_the_order_of_the_collection() -> None:
    ids = [f"l{i}" for i in range(40)]
    labels = pd.DataFrame({"size": [float(i) if i % 3 else None for i in range(40)]}, index=ids)
    source = MemorySource({id: random_lora(MODULES, i) for i, id in enumerate(ids)}, labels)
    assert list(plan(source, ["size"], QUICK).left_out) == ids[::3]


def test_a_mixed_folder_says_what_it_holds(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path, 20)
    for i in range(4):
        write_peft(tmp_path / f"lora00{i}", random_lora([("down_blocks.0.attn2.to_k", 8, 768, 2)]))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(ModelError, match=r"share no module.*16 of BERT-like encoder.*4 of Stable Diffusion 1.x"):
        plan(Zoo.open(tmp_path), ["size"], QUICK)


def test_loras_of_one_base_model_but_of_other_kinds_are_told_so() -> None:
    pair = random_lora(MODULES, 0)
    kron = LoRA(
        tuple(LoRALayer(y.name, Kronecker(Whole(torch.ones(4, 3)), Whole(torch.ones(2, 2)))) for y in pair.layers)
    )
    loras = {f"l{i}": (pair, kron)[i % 2] for i in range(12)}
    source = MemorySource(loras, pd.DataFrame({"size": range(12)}, index=list(loras)))
    with pytest.raises(ModelError, match=r"12 of .*, but their modules are of other kinds \(6 linear, 6 kronecker\)"):
        plan(source, ["size"], QUICK)


def test_diverged_loras_are_left_out_with_their_reason(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 24)
    nan = random_lora(MODULES)
    nan.layers[0].V[0, 0] = float("inf")
    write_peft(tmp_path / "zoo" / "lora003", nan)
    checkpoint = fit(Zoo.open(tmp_path / "zoo"), tmp_path / "run")
    assert list(checkpoint.left_out) == ["lora003/adapter_model.safetensors"]
    assert "diverged" in next(iter(checkpoint.left_out.values()))


def test_a_folder_that_vanishes_while_it_is_open(tmp_path: Path) -> None:
    write_zoo(tmp_path / "zoo", 24)
    zoo = Zoo.open(tmp_path / "zoo")
    planned = plan(zoo, ["size"], QUICK)
    shutil.rmtree(tmp_path / "zoo")
    with pytest.raises(ZooError, match="has gone while it was being read"):
        train(zoo, planned, QUICK, tmp_path / "run")
    with pytest.raises(LoRAFormatError, match="cannot be read"):
        zoo.load(zoo.ids[0])


def test_the_digits_are_the_same_from_the_store_from_memory_and_from_files(
    synthetic_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(synthetic_zoo, ["size"], QUICK)
    packed = fit(synthetic_zoo, tmp_path / "store")
    again = fit(synthetic_zoo, tmp_path / "again")
    monkeypatch.setenv("LOL_STORE_GB", "0")
    in_memory = fit(synthetic_zoo, tmp_path / "memory")
    monkeypatch.setattr("lol_core.learning.factors.MEMORY_SHARE", 0.0)
    assert Factors(synthetic_zoo, planned.spec, planned.ids).records is None
    from_files = fit(synthetic_zoo, tmp_path / "files")
    assert packed.history == again.history == in_memory.history == from_files.history


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_training_without_a_store_warns_of_nothing(
    synthetic_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOL_STORE_GB", "0")
    torch.set_warn_always(True)
    try:
        train(synthetic_zoo, plan(synthetic_zoo, ["size"], QUICK), QUICK, tmp_path / "run")
    finally:
        torch.set_warn_always(False)


def test_a_model_that_would_not_fit_into_memory_is_refused_before_the_work(
    synthetic_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, model="dense")
    needed = memory_needed("dense", plan(synthetic_zoo, ["size"], config).spec, 1, SMALL)
    monkeypatch.setattr("lol_core.learning.memory.free_memory", lambda device: 1.2 * needed)
    with pytest.raises(ModelError, match=r"needs about [\d.e-]+ GB of memory to be trained"):
        plan(synthetic_zoo, ["size"], config)
    assert plan(synthetic_zoo, ["size"], replace(config, model="svd"))


@pytest.mark.parametrize("model", [name for name in MODELS if name not in VARIANTS])
def test_the_memory_that_is_needed_is_that_of_all_copies_fitting_keeps(model: str, synthetic_zoo: Zoo) -> None:
    config = replace(QUICK, model=model)
    planned = plan(synthetic_zoo, ["size"], config)
    built = make_model(model, planned.spec, 1, SMALL)
    weights = 4 * built.n_parameters
    buffers = sum(buffer.numel() * 4 for buffer in built.buffers())
    needed = memory_needed(model, planned.spec, 1, SMALL)
    assert needed == 8 * weights + 3 * buffers
    assert memory_needed(model, planned.spec, 1, SMALL, fitted=False) == weights + buffers


def test_resuming_keeps_why_loras_were_left_out(tmp_path: Path) -> None:
    labels = write_zoo(tmp_path / "zoo", 24)
    labels.loc[3, "size"] = float("nan")
    labels.to_csv(tmp_path / "zoo" / "labels.csv", index=False)
    zoo = Zoo.open(tmp_path / "zoo")
    stopped = fit(zoo, tmp_path / "run", reporter=stop_after(32))
    assert not stopped.finished and list(stopped.left_out) == ["lora003/adapter_model.safetensors"]
    resumed = train(zoo, Plan.of(Checkpoint.load(tmp_path / "run")), QUICK, tmp_path / "run", resume=True)
    assert resumed.finished and resumed.left_out == stopped.left_out


def test_a_diverging_training_says_what_to_try(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="diverged in epoch"):
        fit(synthetic_zoo, tmp_path / "run", replace(QUICK, model="mlp", learning_rate=1e30, epochs=5))


def test_too_few_loras_and_an_absent_device(tmp_path: Path, synthetic_zoo: Zoo) -> None:
    write_zoo(tmp_path, 6)
    with pytest.raises(TaskError, match="Only 6 of 6 LoRAs have a usable label.*at least 10"):
        plan(Zoo.open(tmp_path), ["size"], QUICK)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no device 'cuda' here"):
            plan(synthetic_zoo, ["size"], replace(QUICK, device="cuda"))


def test_class_weights_and_many_targets(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    labels = synthetic_zoo.labels
    labels["second"] = (labels["size"] > labels["size"].quantile(0.8)).astype(int)
    checkpoint = fit(synthetic_zoo, tmp_path / "run", replace(QUICK, class_weights=True), ("positive", "second"))
    assert (
        isinstance(checkpoint.task, Binary)
        and len(checkpoint.task.class_weights) == 2
        and checkpoint.task.class_weights[1] > 2
    )
    scores = checkpoint.metrics["test"]
    assert set(scores.by_target) == {"positive", "second"} and set(scores.by_target["second"]) == set(scores)
    assert scores["auc"] == pytest.approx(np.mean([own["auc"] for own in scores.by_target.values()]))
    frame = checkpoint.task.frame(
        checkpoint.predict([synthetic_zoo.load(synthetic_zoo.ids[0])]), [synthetic_zoo.ids[0]]
    )
    assert list(frame.columns) == ["positive", "second"] and frame.iloc[0].between(0, 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_training_prediction_and_invariance_on_cuda(synthetic_zoo: Zoo, tmp_path: Path) -> None:
    from lol_core.core.batch import stack
    from lol_core.core.groups import GL
    from lol_core.core.symmetry import TOLERANCES, invariance_error

    for model in MODELS:
        for mixed in (False, True):
            config = replace(QUICK, model=model, device="cuda", mixed_precision=mixed)
            checkpoint = fit(synthetic_zoo, tmp_path / f"{model}{mixed}", config)
            reference = fit(synthetic_zoo, tmp_path / f"{model}{mixed}cpu", replace(config, device="cpu"))
            assert checkpoint.history[0]["train_loss"] == pytest.approx(reference.history[0]["train_loss"], rel=0.1)
            loras = [synthetic_zoo.load(id) for id in checkpoint.split["test"]]
            on_cpu = checkpoint.predict(loras)
            checkpoint.model.cuda()
            np.testing.assert_allclose(checkpoint.predict(loras), on_cpu, rtol=1e-3, atol=1e-4)
        if checkpoint.model.symmetry == GL:
            batch = stack(loras, checkpoint.spec)
            for dtype, tolerance in TOLERANCES.items():
                assert (
                    invariance_error(checkpoint.model.to(dtype), batch.to("cuda", dtype), GL, condition=100.0)
                    <= tolerance
                )
