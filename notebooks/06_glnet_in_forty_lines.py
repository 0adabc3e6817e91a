# %% [markdown]
# # 6 · GL-net in forty lines, beside its controls
#
# Everything is there now: linear maps that let $R$ pass (notebook 5), products in which it cancels (notebook 3), and an MLP on top.
# You build GL-net from nothing but PyTorch, train it on the sample zoo, and then ask the question that matters more than the score: *compared with what?*

# %%
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import nn

from lol_core import Zoo
from lol_core.collections.zoo import split_ids
from lol_core.core.batch import shared_spec, stack
from lol_core.core.groups import GL
from lol_core.core.symmetry import invariance_error
from lol_core.learning.evaluation import bootstrap_interval, control_scores, norm_features, score, structure_features
from lol_core.learning.tasks import make_task

torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/glosses")
loras = [zoo.load(id) for id in zoo.ids]
spec = shared_spec(loras)
batch = stack(loras, spec)
print(
    f"{len(batch)} LoRAs of {len(spec.modules)} modules; U of a group of equal shapes is {tuple(batch.U[0].shape)}: LoRAs, modules, n, r"
)


# %% [markdown]
# ## The model
# Modules of equal shape are stacked, so that one matrix product does them all. The invariance error that is printed is rounding: about $10^{-6}$ in float32
# for $\kappa(R) = 100$, where that of an MLP on the raw factors is about 1.


# %%
class GLNet(nn.Module):
    def __init__(self, spec, outputs: int, width: int = 16, hidden: int = 64):
        super().__init__()
        self.Phi, self.Psi = nn.ParameterList(), nn.ParameterList()
        for (n, m), modules in spec.groups:
            self.Phi.append(torch.randn(len(modules), width, n) / n**0.5)
            self.Psi.append(torch.randn(len(modules), width, m) / m**0.5)
        inputs = len(spec.modules) * width**2
        self.head = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def equivariant(self, batch):
        """(Φ U, Ψ V) of every module: R passes through."""
        return [(Phi @ U, Psi @ V) for Phi, Psi, U, V in zip(self.Phi, self.Psi, batch.U, batch.V, strict=True)]

    def invariant(self, batch):
        """Φ U (Ψ V)ᵀ, flattened: R has cancelled. U Vᵀ itself, n × m, is never formed."""
        return torch.cat([(U @ V.mT).flatten(1) for U, V in self.equivariant(batch)], 1)

    def forward(self, batch):
        return self.head(self.invariant(batch))


torch.manual_seed(0)
model = GLNet(spec, outputs=1)
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters; ΔW of all modules would be {sum(y.n * y.m for y in spec.modules):,} numbers"
)
print(
    f"before it has learnt anything: invariance error {invariance_error(model, batch[torch.arange(8)], GL, condition=100.0):.1e}"
)

# %% [markdown]
# ## The question, the split, and the loop
# What share of held-out questions does the fine-tuned encoder answer? 70 % of the LoRAs to learn from, 15 % to choose the epoch, 15 % to judge by.

# %%
task, usable = make_task(zoo.labels, ["accuracy"])
split = split_ids(usable, seed=0)
task = task.fitted(zoo.labels.loc[split["train"]])
rows = {part: torch.tensor([zoo.ids.index(id) for id in ids]) for part, ids in split.items()}
answers = {part: task.encode(zoo.labels.loc[ids]) for part, ids in split.items()}

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
history, best = [], (float("inf"), None)
for epoch in range(40):
    model.train()
    for step in torch.randperm(len(rows["train"])).split(32):
        optimizer.zero_grad()
        loss = task.loss(model(batch[rows["train"][step]]), answers["train"][step])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        validation = float(task.loss(model(batch[rows["validation"]]), answers["validation"]))
    history.append({"epoch": epoch, "training": float(loss.detach()), "validation": validation})
    if validation < best[0]:
        best = validation, {name: value.clone() for name, value in model.state_dict().items()}
model.load_state_dict(best[1])

curves = pd.DataFrame(history)
figure = go.Figure([go.Scatter(x=curves["epoch"], y=curves[part], name=part) for part in ("training", "validation")])
figure.update_layout(
    title="Squared error, in units of the labels' variance", xaxis_title="epoch", height=320
).update_yaxes(type="log")
figure

# %% [markdown]
# ## Compared with what?
# A score alone says nothing. Beside it belong: a constant; a forest on what the *file* says (ranks, alphas, sizes) without any weight; a forest on the norm
# of every module's update; and the same model, for ten epochs, after the labels were shuffled.

# %%
with torch.no_grad():
    predicted = task.decode(model(batch[rows["test"]]))
truth = zoo.labels.loc[split["test"]]
ours = score(task, truth, predicted)
low, high = bootstrap_interval(task, truth, predicted, seed=0)
features = {
    "structure only": pd.DataFrame(structure_features(zoo.entries), index=zoo.ids),
    "norms only": pd.DataFrame(norm_features(batch), index=zoo.ids),
}
controls = control_scores(task, zoo.labels, split, features, seed=0)

torch.manual_seed(0)
blind = GLNet(spec, outputs=1)
optimizer = torch.optim.AdamW(blind.parameters(), lr=1e-3)
shuffled = answers["train"][torch.randperm(len(answers["train"]))]
for _ in range(10):
    for step in torch.randperm(len(shuffled)).split(32):
        optimizer.zero_grad()
        task.loss(blind(batch[rows["train"][step]]), shuffled[step]).backward()
        optimizer.step()
with torch.no_grad():
    controls["shuffled labels"] = score(task, truth, task.decode(blind(batch[rows["test"]])))

scores = {"GL-net in forty lines": ours, **controls}
table = pd.DataFrame({name: dict(values) for name, values in scores.items()}).T[["r2", "kendall_tau"]]
print(f"R² {ours['r2']:.3f}, 95 % {low:.3f} to {high:.3f} (bootstrap over {len(truth)} test LoRAs)")
table.style.format("{:.3f}", na_rep="–")

# %%
bars = go.Figure(go.Bar(x=table.index, y=table["r2"].clip(lower=-0.3), text=[f"{value:.2f}" for value in table["r2"]]))
bars.update_layout(title="R² on LoRAs it has not seen (below −0.3 drawn at −0.3)", height=340)
bars

# %% [markdown]
# The norms alone come far: how well a LoRA does can to a large part be told from how far it has moved. A paper that showed the first bar alone could claim that the network
# "understands weights"; the bar of the norms says how much of that a length tells. After the shuffling the network has learnt wrong answers, most of them by heart,
# and its guesses about new LoRAs vary without having to do with the truth: that is worse than the constant, so its $R^2$ lies far below zero.
#
# One seed and some fifty test LoRAs: the interval is wide. The tables in the documentation have three seeds and more.

# %%
error = invariance_error(model, batch[rows["test"]], GL, condition=100.0)
print(f"trained: invariance error {error:.1e} for κ(R) = 100")
assert error < 1e-3
assert ours["r2"] > controls["constant"]["r2"] + 0.3 and ours["r2"] > controls["structure only"]["r2"] + 0.3
assert ours["r2"] > controls["shuffled labels"]["r2"] + 0.3

# %% [markdown]
# ## Exercises
# 1. Put the nonlinearity of equation (6) and a second equivariant layer between. Does the invariance survive?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
from lol_core.learning.models.layers import EquivariantNonlinearity


class Deeper(GLNet):
    def __init__(self, spec, outputs: int, width: int = 16):
        super().__init__(spec, outputs, width)
        self.sigma = EquivariantNonlinearity("sigmoid")
        self.second = nn.ParameterList(
            [torch.randn(2, len(modules), width, width) / width**0.5 for _, modules in spec.groups]
        )

    def equivariant(self, batch):
        first = [self.sigma(U, V) for U, V in super().equivariant(batch)]
        return [(W[0] @ U, W[1] @ V) for W, (U, V) in zip(self.second, first, strict=True)]


assert invariance_error(Deeper(spec, 1), batch[rows["test"]], GL, condition=100.0) < 1e-3

# %% [markdown]
# 2. How does the number of parameters grow with $n$, $m$, $r$ and the number of modules $L$? And that of MLP + Dense?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
L, n, m, width, hidden = len(spec.modules), *spec.groups[0][0], 16, 64
by_hand = L * width * (n + m) + (L * width**2 * hidden + hidden) + 2 * hidden + (hidden**2 + hidden) + (hidden + 1)
print(f"GL-net {by_hand:,} (linear in n + m, none in r), Dense's first layer alone {L * n * m * hidden:,}")
assert len(spec.groups) > 1 or by_hand == sum(p.numel() for p in model.parameters())

# %% [markdown]
# 3. Is GL-net better than the norms, or was it luck of the split? Count over the bootstrap how often it is.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
from lol_core.learning.evaluation import control_predictions

known = split["train"] + split["validation"]
norms = control_predictions(
    task, zoo.labels, known, split["test"], features={"norms only": features["norms only"]}, seed=0
)["norms only"][:, 0]
y = truth["accuracy"].to_numpy()
draws = np.random.default_rng(0).integers(0, len(y), (2000, len(y)))
better = np.mean([np.square(predicted[d, 0] - y[d]).mean() < np.square(norms[d] - y[d]).mean() for d in draws])
print(f"In {better:.0%} of 2,000 resamplings of the test LoRAs GL-net has the smaller error.")
assert better > 0.5

# %% [markdown]
# **Next**: notebook 7, a thousand LoRAs at once and what their weights give away.
