# %% [markdown]
# # 1 · What a LoRA is, and why its factors are not unique
#
# A fine-tune changes a weight matrix $W$ into $W + \Delta W$. LoRA (Hu et al., 2021) allows only changes of low rank,
# $\Delta W = U V^\top$ with $U \in \mathbb{R}^{n \times r}$ and $V \in \mathbb{R}^{m \times r}$, and stores the two thin factors.
#
# In this notebook you open a LoRA that was really trained, see that endlessly many pairs $(U, V)$ are the same LoRA, and see what that
# does to a network that reads the factors as they stand. All cells run in half a minute.

# %%
import tempfile
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch

from lol_core import TrainingConfig, Zoo
from lol_core.core.batch import stack
from lol_core.core.geometry import spectrum
from lol_core.core.groups import GL
from lol_core.core.symmetry import act, relative_change, sample_for
from lol_core.insight import plots
from lol_core.learning.training import plan, train

torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/glosses")
lora = zoo.load(zoo.ids[0])
print(f"{len(zoo)} LoRAs; the first adapts {len(lora.layers)} modules at rank {lora.ranks}")

# %% [markdown]
# ## One module
# The zoo holds fine-tunes of a sentence encoder. Each was trained on other questions, so each has its own $\Delta W$ in every adapted module.

# %%
layer = lora.layers[0]
print(layer.name)
print(f"U {tuple(layer.U.shape)}, V {tuple(layer.V.shape)}, scale {layer.scale}")
delta = layer.delta(torch.float64)
stored, full = layer.U.numel() + layer.V.numel(), delta.numel()
print(f"ΔW {tuple(delta.shape)}: {full:,} numbers, told by {stored:,} ({stored / full:.1%})")
sigma = torch.linalg.svdvals(delta)
print("singular values of ΔW:", [f"{value:.3g}" for value in sigma[: layer.rank + 2].tolist()])

# %% [markdown]
# After the $r$-th singular value comes only rounding: $\Delta W$ has rank $r$. The library finds them without ever forming $\Delta W$, from the $r \times r$
# matrix that remains when both factors are brought into triangular form.

# %%
assert torch.allclose(spectrum(layer).double(), sigma[: layer.rank], rtol=1e-4)

# %% [markdown]
# ## The same LoRA, written differently
# Put an invertible $R$ and its inverse between the factors: $U R\,(V R^{-\top})^\top = U R R^{-1} V^\top = U V^\top$.
# Nothing that the LoRA *does* has changed, and every stored number has.

# %%
R = GL.sample(layer.rank, condition=10.0, generator=torch.Generator().manual_seed(1))
other = layer.act(R)
print("R =\n", R.numpy().round(2))
print(
    f"U moved by {relative_change(other.U, layer.U):.0%}, V by {relative_change(other.V, layer.V):.0%}, "
    f"ΔW by {relative_change(other.delta(torch.float64), delta):.1e}"
)


# %%
def corner(y):
    U, V = y.folded(torch.float64)
    return {"U": U[:24].numpy(), "V": V[:24].numpy(), "ΔW = U Vᵀ": (U[:24] @ V[:24].T).numpy()}


plots.factor_heatmaps(corner(layer), corner(other))

# %% [markdown]
# Top: the factors as the file has them. Bottom: after $R$. In the first two columns the pictures differ, the third has one picture twice.
#
# Where the pair that a training run ends at lies among all of these depends on its random start. What the LoRA does is the same at every one of them.
#
# ## What a network makes of it
# The zoo knows the validation loss that each LoRA reached. The plainest idea is to flatten $U$ and $V$ and let an MLP read the numbers.
# The paper's answer, GL-net, reads products of linear maps of the factors instead. Train both.

# %%
checkpoints = {}
for model in ("mlp", "gl_net"):
    config = TrainingConfig(model=model, seed=0, epochs=25)
    checkpoints[model] = train(zoo, plan(zoo, ["validation_loss"], config), config, Path(tempfile.mkdtemp()))
    print(
        f"{checkpoints[model].model.title}: R² on LoRAs it has not seen {checkpoints[model].metrics['test']['r2']:.3f}"
    )

# %% [markdown]
# Already on the files as they are the MLP learns next to nothing, perhaps since each of its 222 examples is written in a basis of its own.
# Now take **one** held-out LoRA and write it in a hundred ways.

# %%
held_out = checkpoints["mlp"].split["test"][0]
truth = zoo.labels.loc[held_out, "validation_loss"]
generator = torch.Generator().manual_seed(0)
predictions = {}
for model, checkpoint in checkpoints.items():
    batch = stack([zoo.load(held_out)], checkpoint.spec, torch.float64)
    hundred = batch[torch.zeros(100, dtype=torch.long)]
    turned = act(sample_for(hundred, GL, condition=10.0, generator=generator), hundred)
    with torch.no_grad():
        predictions[model] = checkpoint.task.decode(checkpoint.model.double()(turned))[:, 0]
    checkpoint.model.float()
    print(
        f"{checkpoint.model.title}: from {predictions[model].min():.3f} to {predictions[model].max():.3f}; measured {truth:.3f}"
    )

# %%
figure = go.Figure()
for model, values in predictions.items():
    figure.add_trace(go.Box(x=values, name=checkpoints[model].model.title, boxpoints="all", jitter=0.6))
figure.add_vline(x=truth, line={"dash": "dash", "color": "gray"}, annotation_text="measured")
figure.update_layout(
    title="One LoRA, written in a hundred ways", xaxis_title="predicted validation loss", height=300, showlegend=False
)
figure

# %% [markdown]
# The MLP gives a hundred answers to one question. No training set, however large, shows it all of them, because there is a whole group of
# rewritings, not a finite list. GL-net gives one answer. The rest of these notebooks is about how to build such models, and what they can tell.

# %%
assert relative_change(other.delta(torch.float64), delta) < 1e-6
assert np.ptp(predictions["gl_net"]) < 1e-6 * abs(predictions["gl_net"].mean())
assert np.ptp(predictions["mlp"]) > 1e3 * np.ptp(predictions["gl_net"])

# %% [markdown]
# ## Exercises
# 1. A LoRA of rank 4 can be stored at rank 6. Build the wider pair without changing $\Delta W$, and check it.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
wider = layer.with_pair(
    torch.cat([layer.U, torch.zeros(layer.n, 2)], 1),
    torch.cat([layer.V, torch.randn(layer.m, 2)], 1),  # whatever stands here is multiplied by zero
)
assert wider.rank == layer.rank + 2 and torch.allclose(wider.delta(), layer.delta())

# %% [markdown]
# 2. The scale $s = \alpha / r$ is a part of the function, and may be shared equally, $(\sqrt{s}\,U, \sqrt{s}\,V)$. Find the $R$ that moves all of it into $U$, and the one that shares it again.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
s = 4.0  # R = √s I leads from (√s U, √s V) to (s U, V), and R⁻¹ = I/√s leads back
U, V = layer.U.double() * s**0.5, layer.V.double() * s**0.5
R = torch.eye(layer.rank, dtype=torch.float64) * s**0.5
assert torch.allclose(U @ R, layer.U.double() * s) and torch.allclose(V @ torch.linalg.inv(R).T, layer.V.double())

# %% [markdown]
# 3. How many numbers does a LoRA of rank $r$ really have, once the choice of $R$ is taken away?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
n, m, r = layer.n, layer.m, layer.rank
freedom = (n + m) * r - r * r  # the stored numbers less the dimension of GL(r): the dimension of the matrices of rank r
print(f"{(n + m) * r:,} stored, {freedom:,} of them free")
assert freedom == n * m - (n - r) * (m - r)

# %% [markdown]
# **Next**: notebook 2, the group of all these rewritings and how far it breaks a model.
