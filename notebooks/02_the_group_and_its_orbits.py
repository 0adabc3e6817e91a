# %% [markdown]
# # 2 · The group GL(r), its orbits, and how to break an MLP
#
# The rewritings of notebook 1 form a group: all invertible $R$, written $\mathrm{GL}(r)$, acting by $R \star (U, V) = (UR, V R^{-\top})$.
# All pairs that can be reached from one pair are its **orbit**. A LoRA is an orbit, not a pair, so a sensible model gives one answer on each.
#
# You draw some orbits, see what the subgroups of $\mathrm{GL}(r)$ leave alone, and watch a model that is invariant only under a subgroup lose its score as the test LoRAs are rewritten ever more wildly.

# %%
import copy
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core import TrainingConfig, Zoo
from lol_core.core.batch import stack
from lol_core.core.groups import GL, GROUPS
from lol_core.core.symmetry import act, act_on, relative_change, sample_for
from lol_core.learning.evaluation import score
from lol_core.learning.training import plan, train

torch.set_num_threads(1)

# %% [markdown]
# ## Orbits one can draw
# Take the smallest LoRA there is: $n = m = r = 1$. Then $u, v$ are two numbers, $R$ is a number $c \neq 0$, and $c \star (u, v) = (cu, v/c)$.
# The product $uv$ is all that the LoRA does, and the orbits are the hyperbolas $uv = \text{const}$.

# %%
c = np.exp(np.linspace(-2, 2, 81))
orbits = go.Figure()
for product in (0.25, 1.0, 2.25):
    u, v = np.sqrt(product) * c, np.sqrt(product) / c
    orbits.add_trace(go.Scatter(x=u, y=v, mode="lines", name=f"uv = {product}"))
    np.testing.assert_allclose(u * v, product)
circle = np.linspace(0, np.pi / 2, 40)
orbits.add_trace(
    go.Scatter(
        x=1.4 * np.cos(circle),
        y=1.4 * np.sin(circle),
        mode="lines",
        line={"dash": "dot", "color": "gray"},
        name="‖(u, v)‖ = 1.4",
    )
)
orbits.update_layout(
    title="Each curve is one LoRA",
    width=520,
    height=420,
    xaxis={"range": [0, 3], "title": "u"},
    yaxis={"range": [0, 3], "title": "v"},
)
orbits

# %% [markdown]
# An MLP draws its level lines wherever training puts them; nothing makes them follow the hyperbolas. And mind the dotted circle: a rule like "take the pair
# of norm 1.4" picks two pairs from one of these curves and none from the others.
#
# Orbits run off to infinity, since $c$ may be as large as one likes. So $\mathrm{GL}(r)$ is not compact: no even spread over all of it exists by which a model could be averaged, and a
# training set cannot cover it by examples. How far $R$ stretches is told by its condition number $\kappa(R)$, the ratio of its largest to its smallest singular value.
#
# ## The subgroups
# Rotations and reflections $\mathrm{O}(r)$, permutations of the columns, and scalings of the columns are parts of $\mathrm{GL}(r)$. They differ in what they leave alone.

# %%
zoo = Zoo.open("../sample_loras/glosses")
layer = zoo.load(zoo.ids[3]).layers[0]
U, V = layer.folded(torch.float64)
rows = []
for group in GROUPS:
    R = group.sample(layer.rank, condition=10.0, generator=torch.Generator().manual_seed(0))
    U2, V2 = act_on(R, U, V)
    rows.append(
        {
            "group": group.key,
            "κ(R)": float(torch.linalg.cond(R)),
            "U": relative_change(U2, U),
            "‖U‖": abs(float(U2.norm() / U.norm()) - 1),
            "U Uᵀ": relative_change(U2 @ U2.T, U @ U.T),
            "U Vᵀ": relative_change(U2 @ V2.T, U @ V.T),
        }
    )
moved = pd.DataFrame(rows).set_index("group")
moved.style.format("{:.1e}", subset=["U", "‖U‖", "U Uᵀ", "U Vᵀ"]).format("{:.3g}", subset=["κ(R)"])

# %% [markdown]
# The columns say how much each quantity moves. $\|U\|$ and $U U^\top$ keep still under $\mathrm{O}(r)$ and its permutations and move under the rest;
# only $U V^\top$ keeps still under everything.
#
# ## Breaking an MLP
# Notebook 1 showed that an MLP on the raw factors learns next to nothing here. So take one that does learn: O-Align, an MLP whose factors are first
# rotated onto a template (notebook 4). The question is now how many held-out questions the fine-tuned encoder answers. Train on the files as they are,
# then turn only the test LoRAs.

# %%
models = {}
for title, name in {"O-Align": "o_align", "GL-net": "gl_net"}.items():
    config = TrainingConfig(model=name, seed=0, epochs=40)
    models[title] = train(zoo, plan(zoo, ["accuracy"], config), config, Path(tempfile.mkdtemp()))
test = models["GL-net"].split["test"]
truth = zoo.labels.loc[test]
batch = stack([zoo.load(id) for id in test], models["GL-net"].spec, torch.float64)
twins = {name: copy.deepcopy(checkpoint.model).double() for name, checkpoint in models.items()}


@torch.no_grad()
def r_squared(name: str, turned) -> float:
    return score(models[name].task, truth, models[name].task.decode(twins[name](turned)))["r2"]


# %% [markdown]
# Look at what $\kappa$ does to them:

# %%
kappas = [1, 4, 16, 64, 256, 1024]
curves = {name: [] for name in models}
for kappa in kappas:
    turned = act(sample_for(batch, GL, condition=float(kappa), generator=torch.Generator().manual_seed(0)), batch)
    for name in models:
        curves[name].append(r_squared(name, turned))
figure = go.Figure([go.Scatter(x=kappas, y=values, name=name, mode="lines+markers") for name, values in curves.items()])
figure.update_xaxes(title="κ(R) of the test LoRAs' rewriting", type="log").update_yaxes(title="R² on test LoRAs")
figure.update_layout(title="The same LoRAs, rewritten ever more wildly", height=380)
figure

# %% [markdown]
# At $\kappa = 1$, which is $\mathrm{O}(r)$, both are what they were. From there O-Align falls. GL-net is a flat line, although it was trained on the files as they
# were and has never seen a rewritten LoRA: its invariance is built in, not learnt. O-Align falls slowly here; why, was not asked.
# How far it falls may differ from question to question; that it may fall is what the symmetry says.
#
# With `ipywidgets` you can turn $\kappa$ yourself (on a page that does not run Python, the curve above has to do).

# %%
try:
    from ipywidgets import FloatLogSlider, interact

    @interact(kappa=FloatLogSlider(value=4, base=2, min=0, max=10, step=0.5, description="κ(R)"))
    def turn(kappa: float) -> None:
        turned = act(
            sample_for(batch, GL, condition=max(kappa, 1.0), generator=torch.Generator().manual_seed(0)), batch
        )
        print("   ".join(f"{name}: R² {r_squared(name, turned):.3f}" for name in models))

except ImportError:
    print("Install ipywidgets for the slider.")

# %%
assert abs(curves["O-Align"][0] - r_squared("O-Align", batch)) < 0.01
assert curves["O-Align"][-1] < curves["O-Align"][0] - 0.1
assert np.ptp(curves["GL-net"]) < 1e-6

# %% [markdown]
# ## Exercises
# 1. Check that it is an action, from the right: turning by $R$ and then by $S$ is turning by $RS$.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
g = torch.Generator().manual_seed(5)
R, S = GL.sample(layer.rank, condition=5.0, generator=g), GL.sample(layer.rank, condition=5.0, generator=g)
twice, once = act_on(S, *act_on(R, U, V)), act_on(R @ S, U, V)
assert all(torch.allclose(a, b) for a, b in zip(twice, once, strict=True))

# %% [markdown]
# 2. Two pairs of full rank with the same product lie in one orbit. Given both, find the $R$ that leads from one to the other.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
U2, V2 = act_on(R, U, V)
found = torch.linalg.lstsq(U, U2).solution  # U R = U₂ has one solution, for the columns of U are independent
assert torch.allclose(found, R)

# %% [markdown]
# 3. Show for $n = m = r = 1$ that a continuous function that is invariant is a function of $uv$ and no more, so that all pairs with $uv = 0$ get one answer,
#    whatever their norms. (Hint: what is the orbit of $(u, 0)$, and what lies next to it?)

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# (c u, 0) = c ⋆ (u, 0) for every c, so f(u, 0) does not depend on u ≠ 0, and by continuity it is f(0, 0), as is f(0, v).
# Off the axes the orbit is uv = const, and f is a function of uv. So pairs with V = 0 or U = 0 cannot be told apart, whatever their norms.
f = lambda u, v: u * v
assert f(5.0, 0.0) == f(0.1, 0.0) == f(0.0, 3.0)

# %% [markdown]
# **Next**: notebook 3, functions of $(U, V)$ that do not see $R$, and what each of them forgets.
