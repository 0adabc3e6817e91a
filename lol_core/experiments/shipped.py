"""The trained models that come with the sample zoos: small ones, so that a first visit shows predictions. Each card has
the command that trains it again; `make models` trains them all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lol_core.collections.zoo import Zoo
from lol_core.core.progress import SILENT, Reporter
from lol_core.experiments import table2, table3, table5
from lol_core.learning.config import TrainingConfig
from lol_core.learning.models import find_model
from lol_core.learning.training import plan, train

OTHER = {
    table5.LOSS_QUESTION: "o_align",
    table5.ACCURACY_QUESTION: "svd",
    table5.SOURCES_QUESTION: "svd",
    table2.QUESTION: "svd",
    table3.ATTRIBUTES_QUESTION: "o_align",
    table3.CLASSES_QUESTION: "svd",
}
"""Question → what is trained on it beside GL-net. MLP + O-Align is there to be seen moving with R."""
SHAPES: dict[str, dict[str, Any]] = {
    "gl_net": {"width": 32, "equivariant_width": 8, "dropout": 0.1},
    "o_align": {"width": 8},
    "svd": {},
}


def train_shipped(samples: Path, reporter: Reporter = SILENT) -> None:
    """Train what is missing in `samples`/checkpoints."""
    steps = [(question, model) for question, other in OTHER.items() for model in ("gl_net", other)]
    for number, (question, model) in enumerate(steps):
        out = samples / "checkpoints" / f"{question.name}-{model.replace('_', '-')}"
        if (out / "checkpoint.json").is_file():
            continue
        zoo = Zoo.open(samples / question.zoo)
        config = TrainingConfig(model=model, model_config=find_model(model).configure(**SHAPES[model]))
        part = reporter.part(number / len(steps), (number + 1) / len(steps), f"{model} on {question.name}: ")
        train(zoo, plan(zoo, question.targets, config), config, out, reporter=part)
        (out / "state.safetensors").unlink()  # it is there to go on from, and training is over


if __name__ == "__main__":
    train_shipped(Path(sys.argv[1]), Reporter(lambda progress: print(f"{progress.fraction:.0%} {progress.message}")))
