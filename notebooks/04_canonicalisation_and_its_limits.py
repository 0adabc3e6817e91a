# %% [markdown]
# # 4 · Canonicalisation by Procrustes, and why O(r) is not enough
#
# Another way to a model that does not see $R$: agree on one pair in each orbit, move every LoRA there, and let an MLP read that. This is *canonicalisation*.
# The paper's O-Align does it with rotations; here you see that it undoes every rotation exactly, that it cannot undo the rest of $\mathrm{GL}(r)$, and what would.

# %%
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core import Zoo
from lol_core.core.groups import GL, GROUPS, O
from lol_core.core.symmetry import act_on, relative_change
from lol_core.insight import plots
from lol_core.learning.models.o_align import procrustes

torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/glosses")
U, V = zoo.load(zoo.ids[0]).layers[0].folded(torch.float64)
template_U, template_V = zoo.load(zoo.ids[1]).layers[0].folded(torch.float64)
r = U.shape[1]

# %% [markdown]
# ## Procrustes
# Choose one LoRA $(\mathbf{U}, \mathbf{V})$ as the template. Of all rotations $Q$ take the one that brings the others nearest to it (equation 3 of the paper):
#
# $$\min_{Q \in \mathrm{O}(r)} \|UQ - \mathbf{U}\|^2 + \|VQ - \mathbf{V}\|^2 \quad\Longrightarrow\quad Q = A B^\top,\qquad U^\top\mathbf{U} + V^\top\mathbf{V} = A \Sigma B^\top .$$
#
# One SVD of an $r \times r$ matrix. Compare its value with thousands of other rotations:

# %%
Q = procrustes(U, V, template_U, template_V)
value = lambda Q: float((U @ Q - template_U).square().sum() + (V @ Q - template_V).square().sum())
others = [value(other) for other in O.sample(r, count=(3000,), generator=torch.Generator().manual_seed(0))]
figure = go.Figure(go.Histogram(x=others, name="3,000 random rotations"))
figure.add_vline(x=value(Q), line={"color": "#d55e00"}, annotation_text="Procrustes").update_layout(
    title="Squared distance to the template", xaxis_title="‖UQ − 𝐔‖² + ‖VQ − 𝐕‖²", height=320
)
figure

# %% [markdown]
# ## It undoes rotations, and nothing else
# Rewrite the LoRA, align again, and compare with the aligned original.


# %%
def aligned(U, V):
    Q = procrustes(U, V, template_U, template_V)
    return torch.cat([U @ Q, V @ Q])


rows = []
for group in GROUPS:
    R = group.sample(r, condition=10.0, generator=torch.Generator().manual_seed(2))
    U2, V2 = act_on(R, U, V)
    rows.append(
        {
            "R from": group.key,
            "raw factors move": relative_change(torch.cat([U2, V2]), torch.cat([U, V])),
            "aligned factors move": relative_change(aligned(U2, V2), aligned(U, V)),
        }
    )
o_align = pd.DataFrame(rows).set_index("R from")
o_align.style.format("{:.1e}")

# %% [markdown]
# What $\mathrm{O}(r)$ does, and permutations are in it, vanishes to rounding. A scaling or a general $R$ survives: more than half of what it moves is still there after alignment.
#
# ## Why not minimise over GL(r)?
# Let $R = cQ$: then $U$ can be brought to any size at all while $V$ shrinks, and the sum of the two distances has a minimum along this line. For factors of
# full rank there is one over all of $\mathrm{GL}(r)$ too, as the sum grows without bound where $R$ or $R^{-1}$ does. But the problem is not convex, and no closed form is known to us.

# %%
c = np.logspace(-1.5, 1.5, 121)
Q = procrustes(U, V, template_U, template_V)
along = [float((s * U @ Q - template_U).square().sum() + (V @ Q / s - template_V).square().sum()) for s in c]
line = go.Figure(go.Scatter(x=c, y=along)).update_layout(title="Distance to the template along R = cQ", height=320)
line.update_xaxes(type="log", title="c").update_yaxes(type="log", title="squared distance")
line

# %% [markdown]
# ## Balancing first
# There is a way. Among all pairs with the product $\Delta W = P \Sigma S^\top$, the pair $(P \Sigma^{1/2}, S \Sigma^{1/2})$ is **balanced**: $U^\top U = V^\top V$.
# Balanced pairs of one orbit differ by rotations only (exercise 2), so balancing takes care of $\mathrm{GL}(r)$ down to $\mathrm{O}(r)$, and Procrustes of the rest.


# %%
def balanced(U, V):
    """(P √Σ, S √Σ) by the QR of both factors and the SVD of an r × r matrix."""
    Q_U, R_U = torch.linalg.qr(U)
    Q_V, R_V = torch.linalg.qr(V)
    A, sigma, Bh = torch.linalg.svd(R_U @ R_V.T)
    return Q_U @ A * sigma.sqrt(), Q_V @ Bh.T * sigma.sqrt()


rows = []
for group in GROUPS:
    R = group.sample(r, condition=10.0, generator=torch.Generator().manual_seed(2))
    moved = relative_change(aligned(*balanced(*act_on(R, U, V))), aligned(*balanced(U, V)))
    rows.append({"R from": group.key, "balanced, then aligned": moved})
whole = pd.DataFrame(rows).set_index("R from")
whole.style.format("{:.1e}")

# %% [markdown]
# Now it is invariant under all of $\mathrm{GL}(r)$. The paper keeps to $\mathrm{O}(r)$, which it calls "significantly simpler than $\mathrm{GL}(r)$ canonicalization"; what balancing adds is one more SVD of an $r \times r$ matrix.
#
# What speaks against both, with balancing and without: the canonical pair is not *continuous*. Where one singular value
# of $U^\top\mathbf{U} + V^\top\mathbf{V}$ vanishes, a small change of the LoRA throws $Q$ somewhere else. Below, the first column of $U$ and of $V$ is led round a half
# circle to its negative, through a direction that the template does not hold. $U$ and $V$ keep their full rank all the way; half way one singular value is zero, and $Q$ jumps.


# %%
def half_circle(X: torch.Tensor, template: torch.Tensor, t: float) -> torch.Tensor:
    """X with its first column turned by πt towards a direction that is orthogonal to X and to the template."""
    known = torch.cat([X, template], 1)
    away = torch.linalg.qr(torch.cat([known, torch.ones(len(X), 1, dtype=X.dtype)], 1)).Q[:, -1]
    first = math.cos(math.pi * t) * X[:, 0] + math.sin(math.pi * t) * X[:, 0].norm() * away
    return torch.cat([first[:, None], X[:, 1:]], 1)


steps = torch.linspace(0, 1, 60, dtype=torch.float64)
path = [(half_circle(U, template_U, float(t)), half_circle(V, template_V, float(t))) for t in steps]
Qs = [procrustes(*pair, template_U, template_V) for pair in path]
turns = [float((Qs[k + 1] - Qs[k]).norm()) for k in range(len(Qs) - 1)]
smallest = [float(torch.linalg.svdvals(torch.cat(pair))[-1]) for pair in path]
jump = go.Figure(go.Scatter(x=steps[:-1], y=turns, mode="lines")).update_layout(
    title="How far Q turns from one step to the next", height=300
)
jump.update_xaxes(title="t: the first columns turned by πt").update_yaxes(title="‖Q(t + δ) − Q(t)‖")
jump

# %%
assert value(procrustes(U, V, template_U, template_V)) <= min(others)
assert o_align.loc[["o", "permutation"], "aligned factors move"].max() < 1e-9
assert o_align.loc[["gl", "scaling"], "aligned factors move"].min() > 0.1
assert whole["balanced, then aligned"].max() < 1e-6
assert max(turns) > 1 and sorted(turns)[-2] < 0.5 and min(smallest) > 0.1

# %% [markdown]
# ## Exercises
# 1. Which pair of an orbit has the smallest $\|U\|^2 + \|V\|^2$? Compare the balanced pair with a thousand others.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# 2‖ΔW‖_* (twice the sum of the singular values) is the minimum over the orbit, and the balanced pair reaches it. Weight decay on U and V draws there.
size = lambda U, V: float(U.square().sum() + V.square().sum())
rivals = [
    size(*act_on(R, U, V))
    for R in GL.sample(r, condition=4.0, count=(1000,), generator=torch.Generator().manual_seed(3))
]
nuclear = torch.linalg.svdvals(U @ V.T).sum()
assert size(*balanced(U, V)) <= min(rivals) and np.isclose(size(*balanced(U, V)), 2 * float(nuclear))

# %% [markdown]
# 2. Let $(U, V)$ be balanced, $U^\top U = V^\top V$, and $R \star (U, V)$ balanced as well. Show that $R$ is orthogonal when the singular values are positive.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# With G = UᵀU = VᵀV > 0: RᵀGR = R⁻¹GR⁻ᵀ, so X G X = G for X = RRᵀ. Then (G^½ X G^½)² = G², and a positive matrix has one positive root:
# G^½ X G^½ = G, hence X = I. A check with two balanced pairs of one orbit:
R = GL.sample(r, condition=10.0, generator=torch.Generator().manual_seed(4))
first, second = balanced(U, V), balanced(*act_on(R, U, V))
between = torch.linalg.lstsq(first[0], second[0]).solution
assert torch.allclose(between @ between.T, torch.eye(r, dtype=torch.float64), atol=1e-6)
figure = plots.matrix(between.numpy(), "the R between two balanced pairs")

# %% [markdown]
# **Next**: notebook 5, layers that let $R$ pass instead of removing it.
