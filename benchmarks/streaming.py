"""Training from packed factors in the store, read ahead, beside the same training with the factors in memory, at the
geometry of Stable Diffusion 1.4's attention and a batch of 64: `python -m benchmarks.streaming`. Synthetic factors.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import Claim, alternately
from benchmarks.models import attention, factors
from lol_core.collections.records import Records
from lol_core.collections.store import Kept, Store
from lol_core.learning.models import make_model
from lol_core.learning.models.gl_net import GLNetConfig
from lol_core.learning.packed import Packing
from lol_core.learning.stream import parts, stream

BATCH = 64


def claims(quick: bool = False) -> list[Claim]:
    torch.set_num_threads(1)
    count, rounds = (128, 1) if quick else (256, 7)
    packing = Packing(attention())
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place), limit=1e10)
        ids = [str(i) for i in range(count)]
        kept = Records.open(store, Kept.FACTORS, packing.key, packing.size, keys=ids)
        assert kept is not None
        for some in parts(ids, 32):
            assert kept.add(some, packing.pack(factors(packing.spec, len(some))))
        mapped = kept.mapped()
        model = make_model("gl_net", packing.spec, 1, GLNetConfig())
        optimizer = torch.optim.AdamW(model.parameters())

        def epoch(records: torch.Tensor) -> Callable[[], None]:
            def run() -> None:
                order = [str(i) for i in torch.randperm(count).tolist()]
                for batch in stream(lambda some: packing.batch(records, [*map(int, some)]), parts(order, BATCH)):
                    optimizer.zero_grad()
                    model(batch).square().mean().backward()
                    optimizer.step()

            return run

        taken = alternately({"memory": epoch(mapped.clone()), "store": epoch(mapped)}, rounds, time.perf_counter)
    text = f"Training GL-net from the store, {count} LoRAs of 128 modules, batch {BATCH}"
    return [Claim(text, 0.8, taken["store"], taken["memory"], "the same from memory", "s of the clock")]


def main() -> None:
    for claim in claims():
        print(f"{claim.text}: {claim.ratio:.2f} of the speed of {claim.against}")


if __name__ == "__main__":
    main()
