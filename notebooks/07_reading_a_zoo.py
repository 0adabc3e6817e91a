# %% [markdown]
# # 7 · Reading a zoo: a map, neighbours, and what leaks
#
# A thousand LoRAs in a folder, and no word about any of them. What can be read from the weights alone? The zoo `faces` holds 1,000 DreamBooth fine-tunes of a small
# diffusion model, each on a few pictures of one drawn person. You make a map of them, look at neighbours, and then ask what an outsider could find out about
# the pictures that a LoRA was trained on.

# %%
import tempfile
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from PIL import Image

from lol_core import TrainingConfig, Zoo
from lol_core.insight import plots
from lol_core.insight.embedding import space_of
from lol_core.insight.explanation import explain
from lol_core.insight.picture import project
from lol_core.learning.training import plan, train

torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/faces")
ids = zoo.ids[:400]  # 400 of the 1,000, to stay within a minute
ATTRIBUTES = ["Eyeglasses", "Wearing_Hat", "Smiling", "Beard", "Long_Hair"]
zoo.labels.loc[ids, [*ATTRIBUTES, "learning_rate", "steps"]].describe().loc[["mean", "min", "max"]]

# %% [markdown]
# ## A map
# Two LoRAs are near when their updates are: $\|\Delta W_1 - \Delta W_2\|^2 = \langle \Delta W_1, \Delta W_1\rangle - 2\langle \Delta W_1, \Delta W_2\rangle + \langle \Delta W_2, \Delta W_2\rangle$,
# and $\langle U_1 V_1^\top, U_2 V_2^\top \rangle = \langle U_1^\top U_2, V_1^\top V_2\rangle$ costs a few thin products. It does not depend on $R$, and no model was
# trained for it.

# %%
# 400 LoRAs by their updates, PCA, coloured by the learning rate they were trained with
spaces = {kind: space_of(zoo, ids, kind) for kind in ("updates", "directions")}
picture = project(spaces["updates"], "PCA")
rates = zoo.labels.loc[ids, "learning_rate"].map("learning rate {:g}".format)
map_ = plots.collection_map(picture, zoo.names, rates, [])
map_.update_layout(height=460)
map_

# %% [markdown]
# The higher the learning rate, the further a LoRA mostly lies from the crowd: its update is larger. On which *side* it lies is another matter, to which we come back below.
# Divide every $\Delta W$ by its norm, and only directions are left.
#
# ## Neighbours
# For one LoRA, the nearest by direction. The pictures below come from the zoo's previews: what each LoRA draws.

# %%
one = ids[7]
near = spaces["directions"].neighbours(one, 5)
strips = [Image.open(zoo.folder / "previews" / f"{Path(id).stem}.webp") for id in [one, *near.index]]
sheet = Image.new("RGB", (sum(strip.height for strip in strips), strips[0].height), "white")
for k, strip in enumerate(strips):
    sheet.paste(strip.crop((0, 0, strip.height, strip.height)), (k * strip.height, 0))
print(f"{zoo.names[one]}, then its neighbours {', '.join(zoo.names[id] for id in near.index)}")
sheet

# %%
zoo.labels.loc[[one, *near.index], [*ATTRIBUTES, "learning_rate", "steps"]].assign(distance=[0.0, *near])

# %% [markdown]
# ## Which columns explain a group?
# Take the quarter that lies furthest to the right on the map, and ask which labels tell it from the rest.

# %%
right = list(picture["x"].nlargest(100).index)
reasons = explain(zoo.labels.loc[ids], right)
reasons.head(6)

# %% [markdown]
# The word in the prompts that a LoRA was trained with, here *thing*, tells this side from the rest far better than how long it was trained, or at which rate. The CLIP score is lower on this side too,
# by the paper's prompts (`clip_score_original`), and by prompts about people from two seeds of the noise.
#
# ## What leaks
# Now the serious question. The persons are drawn, so nobody is harmed here; with photographs it would be otherwise. Can one tell from the weights whether
# the person in the training pictures wears glasses?

# %%
config = TrainingConfig(model="gl_net", seed=0, epochs=30)
checkpoint = train(zoo, plan(zoo, ATTRIBUTES, config, ids=ids), config, Path(tempfile.mkdtemp()))
test = checkpoint.split["test"]
predicted = pd.DataFrame(checkpoint.predict([zoo.load(id) for id in test]), index=test, columns=ATTRIBUTES)
right_answers = (predicted.round() == zoo.labels.loc[test, ATTRIBUTES]).mean()
commoner = zoo.labels.loc[test, ATTRIBUTES].apply(lambda column: max(column.mean(), 1 - column.mean()))
leaks = pd.DataFrame({"GL-net": right_answers, "the commoner answer": commoner})
bars = go.Figure([go.Bar(x=leaks.index, y=leaks[name], name=name) for name in leaks])
bars.update_layout(
    title=f"Told from the weights alone, {len(test)} unseen LoRAs",
    yaxis={"range": [0, 1], "title": "accuracy"},
    height=340,
)
bars

# %%
for name in ("constant", "structure only", "norms only"):
    print(f"{name:15s} accuracy {checkpoint.controls[name]['accuracy']:.3f}")
accuracy = checkpoint.metrics["test"]["accuracy"]
print(
    f"GL-net          accuracy {accuracy:.3f}, 95 % {checkpoint.interval[0]:.3f} to {checkpoint.interval[1]:.3f}; learnt from {len(checkpoint.split['train'])} LoRAs"
)

# %% [markdown]
# Here neither the file nor the size of the updates says much of this; the directions do. So whoever publishes a LoRA may publish something about its training pictures, also when the
# pictures, the captions and the metadata stay at home. To look before publishing: train such a model on LoRAs like yours, and see what it says of the one you want
# to give away.

# %%
assert accuracy > checkpoint.controls["constant"]["accuracy"] + 0.1
assert accuracy > checkpoint.controls["norms only"]["accuracy"] + 0.1
assert reasons.loc[0, "column"] == "prompt" and reasons.loc[0, "effect"] > 0.5

# %% [markdown]
# ## Exercises
# 1. Without any training: how often does the nearest neighbour by direction have the same attribute? Compare with chance.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
nearest = {id: spaces["directions"].neighbours(id, 1).index[0] for id in ids}
labels = zoo.labels.loc[ids, ATTRIBUTES]
same = (labels.to_numpy() == labels.loc[[nearest[id] for id in ids]].to_numpy()).mean(0)
chance = labels.mean() ** 2 + (1 - labels.mean()) ** 2
comparison = pd.DataFrame({"nearest neighbour agrees": same, "chance": chance})
print(comparison.round(3))
assert comparison["nearest neighbour agrees"].mean() > comparison["chance"].mean()

# %% [markdown]
# 2. Does it tell more when it may learn from more LoRAs? Halve the training set and compare.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
half = train(zoo, plan(zoo, ATTRIBUTES, config, ids=ids[:200]), config, Path(tempfile.mkdtemp()))
print(
    f"half of the LoRAs: accuracy {half.metrics['test']['accuracy']:.3f} on {len(half.split['test'])} test LoRAs, {accuracy:.3f} with all"
)
assert half.metrics["test"]["accuracy"] < accuracy + 0.05

# %% [markdown]
# **Next**: notebook 8, a prediction held against the pictures that LoRAs draw.
