"""Training from what does not fit in memory, read ahead and with the digits of memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lol_core.collections.memory import MemorySource
from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.lora import LoRA
from lol_core.errors import LoRAFormatError, ModelError
from lol_core.learning.answers import Answers
from lol_core.learning.checkpoint import Checkpoint
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import LoLModel, ModelConfig
from lol_core.learning.stream import ahead, parts, stream
from lol_core.learning.training import plan, train
from tests.builders import SHAPES, random_lora
from tests.conftest import ROOT

LORAS = {f"l{i}": random_lora(seed=i, scale=1 + i / 10) for i in range(40)}
LABELS = pd.DataFrame({"size": range(40)}, index=list(LORAS), dtype=float)
QUICK = TrainingConfig(model_config=ModelConfig(width=16, dropout=0.1), epochs=3, batch_size=8, device="cpu")


def test_the_next_item_is_made_while_one_is_used() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        made.set()
        yield 1

    read = ahead(items())
    assert next(read) == 0 and made.wait(30), "nobody has asked for it yet"
    assert list(read) == [1] and list(ahead(iter(()))) == []


def test_what_reading_raises_is_raised_where_the_batch_would_be() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise LoRAFormatError("gone")

    read = ahead(items())
    assert next(read) == 0
    with pytest.raises(LoRAFormatError, match="gone"):
        next(read)


@pytest.mark.parametrize("read_ahead", [False, True])
def test_a_stream_keeps_the_order_and_draws_nothing(read_ahead: bool) -> None:
    spec = shared_spec(LORAS.values())

    def fetch(ids: Sequence[str]) -> Batch:
        return stack([LORAS[id] for id in ids], spec)

    state = torch.random.get_rng_state()
    batches = parts([*LORAS][::-1], 16)
    assert [len(batch) for batch in batches] == [16, 16, 8]
    for ids, batch in zip(batches, stream(fetch, batches, read_ahead=read_ahead), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(batch.U, fetch(ids).U, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_reading_ahead_changes_no_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource(LORAS, LABELS)
    planned = plan(source, ["size"], QUICK)
    without = train(source, planned, QUICK, tmp_path / "without")
    monkeypatch.setattr("lol_core.learning.factors.AHEAD_FROM", 0)
    assert train(source, planned, QUICK, tmp_path / "ahead").history == without.history


def test_a_collection_is_predicted_in_batches_with_a_reason_for_each_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(QUICK, model="o_align", epochs=1)
    source = MemorySource(LORAS, LABELS)
    train(source, plan(source, ["size"], config), config, tmp_path)
    checkpoint = Checkpoint.load(tmp_path)
    broken = random_lora(seed=5)
    broken.layers[0].U[0, 0] = float("nan")
    others = {
        "thin": random_lora([(name, n, m, 1) for name, n, m, _ in SHAPES]),
        "broken": broken,
        "missing": LoRA(random_lora().layers[:1]),
    }
    sizes: list[int] = []
    forward = type(checkpoint.model).forward

    def counted(model: LoLModel, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        return forward(model, batch)

    monkeypatch.setattr(type(checkpoint.model), "forward", counted)
    alone = Answers.of(checkpoint, MemorySource(LORAS), batch_size=16)
    assert sizes == [16, 16, 8] and list(alone.values.index) == list(LORAS) and not alone.refused
    mixed = Answers.of(checkpoint, MemorySource(LORAS | others), batch_size=16)
    pd.testing.assert_frame_equal(mixed.values, alone.values)
    pd.testing.assert_frame_equal(mixed.marks, alone.marks)
    refused = mixed.refused
    assert set(refused) == set(others)
    assert "takes no other" in refused["thin"] and "missing" in refused["missing"] and "finite" in refused["broken"]
    with pytest.raises(ModelError, match="no device"):
        Checkpoint.load(tmp_path, "abacus")


TRAINER = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import pandas as pd
import torch
from lol_core.collections.entry import Entry
from lol_core.collections.source import Source
from lol_core.core.lora import LoRA, LoRALayer
from lol_core.learning import factors
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import ModelConfig
from lol_core.learning.training import plan, train

class Drawn(Source):
    name = "drawn anew each time it is read, so that nothing of it is in memory"
    def __init__(self, count):
        entry = Entry.of(self.load("0"), path="0", size=51_200)
        self.entries = [replace(entry, path=str(i), digest=str(i)) for i in range(count)]
        self.labels = pd.DataFrame({"size": range(count)}, index=[str(i) for i in range(count)], dtype=float)
    def load(self, id):
        generator = torch.Generator().manual_seed(int(id))
        U, V = (torch.randn(1600, 4, generator=generator) for _ in range(2))
        return LoRA((LoRALayer.pair("a", U, V),))

torch.set_num_threads(1)
factors.BLOCK, factors.AHEAD_FROM = 2**22, 2**18
config = TrainingConfig("svd", ModelConfig(width=8), epochs=2, batch_size=8, device="cpu")
zoo, out = Drawn(1600), Path(sys.argv[1])
planned = plan(zoo, ["size"], config)
train(zoo, plan(zoo, ["size"], config, ids=zoo.ids[:20]), config, out)  # so that what is loaded once is there
size = 4 * planned.spec.parameters * len(zoo)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (1024 * used + size // 2,) * 2)
print(train(zoo, planned, config, out).history)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA does not count mappings elsewhere")
def test_a_zoo_of_twice_the_memory_limit_trains(tmp_path: Path) -> None:
    def trained(**settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", TRAINER, str(tmp_path)]
        exact = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is not kept by glibc
        return subprocess.run(command, cwd=ROOT, env=os.environ | exact | settings, capture_output=True, text=True)

    packed = trained()
    assert packed.returncode == 0 and "'epoch': 2" in packed.stdout, packed.stderr[-2000:]
    in_memory = trained(LOL_STORE_GB="0")
    assert in_memory.returncode != 0 and "memory" in in_memory.stderr, "the limit is none"
