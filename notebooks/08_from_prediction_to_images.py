# %% [markdown]
# # 8 · From prediction to images
#
# The paper's first question: how well do the images of a LoRA match their prompts, told from its weights, without drawing a single one? CLIP gives the measured answer
# (the *CLIP score*), which in the paper costs 660 forward passes of the image model for each LoRA. A LoL model guesses it in one forward pass of its own. Here you train one, rank LoRAs it has not seen,
# and then draw after all, to see what the ranking means.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch

from lol_core import TrainingConfig, Zoo
from lol_core.insight import plots
from lol_core.insight.generation import Painter, Sampling, contact_sheet
from lol_core.learning.training import plan, train

os.environ.update(
    DIFFUSERS_VERBOSITY="error", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1"
)  # nothing is fetched, and little is said about it
torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/faces")
zoo.labels["clip_score"].describe()[["count", "mean", "std", "min", "max"]]

# %% [markdown]
# The score was measured with the small CLIP model that comes with the zoo: 34 prompts, *a celebrity* and *a person* in sixteen places and as a portrait.
#
# ## Train

# %%
config = TrainingConfig(model="gl_net", seed=1, epochs=20)
checkpoint = train(zoo, plan(zoo, ["clip_score"], config), config, Path(tempfile.mkdtemp()))
scores = {"GL-net": checkpoint.metrics["test"], **checkpoint.controls}
for name, found in scores.items():
    print(f"{name:15s} R² {found['r2']:6.3f}   Kendall τ {found.get('kendall_tau', float('nan')):6.3f}")
print(
    f"seed {config.seed}: one split of several; 95 % interval of GL-net's R² {checkpoint.interval[0]:.3f} to {checkpoint.interval[1]:.3f}"
)

# %% [markdown]
# The norms say a good deal of it: a LoRA that has been driven far has often spoilt things. On a single split GL-net may or may not be ahead of them; cross-validation
# over all 1,000 (`python -m lol_core crossvalidate --zoo sample_loras/faces --target clip_score`) puts its $\tau$ above that of the norms by .086 (.047 to .129 over
# LoRAs, for those five trainings); of a searched GL-net, trained anew for 25 folds, the difference is .077 (.029 to .125; table 2 of the results).
#
# ## Rank what it has not seen

# %%
test = checkpoint.split["test"]
predicted = checkpoint.predict([zoo.load(id) for id in test])[:, 0]
measured = zoo.labels.loc[test, "clip_score"].to_numpy()
order = np.argsort(-predicted)
figure = go.Figure(go.Scatter(x=predicted, y=measured, mode="markers", text=[zoo.names[id] for id in test]))
figure.update_layout(
    title="Held-out LoRAs", xaxis_title="predicted CLIP score", yaxis_title="measured CLIP score", height=400
)
figure

# %% [markdown]
# ## Draw
# The two ranked highest, the two ranked lowest, and the base model without a LoRA, from the same prompts and the same noise.

# %%
painter = Painter("../sample_loras/small-diffusion", cache=Path(tempfile.mkdtemp()))
prompts = ["a person on the beach", "a celebrity", "a car"]
sampling = Sampling(seed=7, steps=12, guidance=3.0)
chosen = {f"highest {k + 1}\n{zoo.names[test[i]]}": test[i] for k, i in enumerate(order[:2])}
chosen |= {"base\nno LoRA": None}
chosen |= {f"lowest {k + 1}\n{zoo.names[test[i]]}": test[i] for k, i in enumerate(order[-1:-3:-1])}
columns = [painter.draw(None if id is None else zoo.folder / id, prompts, sampling) for id in chosen.values()]
sheet = contact_sheet(list(zip(*columns, strict=True)), list(chosen), prompts, cell=120)
sheet

# %% [markdown]
# Read it by columns. What the lowest-ranked LoRAs have in common is damage: the person is missing where she was asked for, or the car has become something else. Nothing was drawn
# for the ranking; it comes from the weights.

# %%
top, bottom = measured[order[:20]].mean(), measured[order[-20:]].mean()
print(
    f"measured CLIP score of the 20 ranked highest: {top:.3f}; of the 20 ranked lowest: {bottom:.3f}; all {measured.mean():.3f}"
)
assert checkpoint.metrics["test"]["kendall_tau"] > 0.2
assert top > bottom + 0.3 * measured.std()

# %% [markdown]
# ## Exercises
# 1. How much of what could be gained does the ranking gain? Compare the 20 ranked highest with 20 at random and with the 20 that are measured highest.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
best, chance = np.sort(measured)[-20:].mean(), measured.mean()
share = (top - chance) / (best - chance)
print(f"The ranking reaches {share:.0%} of the way from chance to the best possible choice.")
assert 0 < share < 1

# %% [markdown]
# 2. Turn the strength of the lowest-ranked LoRA down. What comes back?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
worst = zoo.folder / test[order[-1]]
strengths = [0.0, 0.25, 0.5, 1.0]
walk = [painter.draw(worst, prompts[:1], Sampling(seed=7, steps=12, guidance=3.0, strength=s)) for s in strengths]
strip = contact_sheet([[images[0] for images in walk]], [f"strength {s}" for s in strengths], prompts[:1], cell=120)
assert strip.width > strip.height

# %% [markdown]
# 3. Draw the ranking itself: predicted scores in order, measured ones beside them.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
import pandas as pd

ranked = pd.Series(predicted, index=test).sort_values(ascending=False)
ranking = plots.ranking(ranked, zoo.labels.loc[ranked.index, "clip_score"], "predicted CLIP score")
assert len(ranking.data) >= 1

# %% [markdown]
# **Next**: notebook 9, models whose answer is a LoRA.
