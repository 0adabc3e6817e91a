# %% [markdown]
# # 3 · Invariants: products, spectra, and what each forgets
#
# A model that must not see $R$ can read functions of $\Delta W$ only (of factors of full rank: notebook 2, exercise 2). There are many, and each keeps something and forgets something.
# What an invariant forgets, no network on top of it can learn again. You try four of them on what one can do to a LoRA, and then ask real LoRAs a question that one of the four cannot answer.

# %%
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core import Zoo
from lol_core.core.batch import Batch, shared_spec, stack
from lol_core.core.groups import GL
from lol_core.core.symmetry import act, relative_change, sample_for
from lol_core.learning.models import ModelConfig, make_model

torch.set_num_threads(1)
zoo = Zoo.open("../sample_loras/glosses")
loras = [zoo.load(id) for id in zoo.ids]
spec = shared_spec(loras)
batch = stack(loras, spec, torch.float64)
U, V = batch.U[0][0, 0], batch.V[0][0, 0]

# %% [markdown]
# ## Four invariants of one module
# 1. the product $U V^\top$ itself, all $nm$ numbers (MLP + Dense);
# 2. a few linear views of it, $\Phi U V^\top \Psi^\top$ with small $\Phi, \Psi$ (GL-net);
# 3. the products with itself, $\Delta W \Delta W^\top$, seen through $\Phi$ (two of the four views of MVProbe);
# 4. the singular values $\sigma_1 \ge \dots \ge \sigma_r$ (MLP + SVD).
#
# Each is tried on six things one can do to a LoRA. The first three do not change the function; the others do.

# %%
generator = torch.Generator().manual_seed(0)
n, m, r = *U.shape[:1], V.shape[0], U.shape[1]
Phi, Psi = (
    torch.randn(8, n, generator=generator, dtype=torch.float64) / n**0.5,
    torch.randn(8, m, generator=generator, dtype=torch.float64) / m**0.5,
)
invariants = {
    "U Vᵀ": lambda U, V: U @ V.T,
    "Φ U Vᵀ Ψᵀ": lambda U, V: (Phi @ U) @ (Psi @ V).T,
    "Φ ΔW ΔWᵀ Φᵀ": lambda U, V: (Phi @ U) @ (V.T @ V) @ (Phi @ U).T,
    "σ": lambda U, V: torch.linalg.svdvals(torch.linalg.qr(U)[1] @ torch.linalg.qr(V)[1].T),
    "(U, V), no invariant": lambda U, V: torch.cat([U, V]),
}
R = torch.randn(r, r, generator=generator, dtype=torch.float64)
Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
changes = {
    "R ⋆ (U, V)": (U @ R, V @ torch.linalg.inv(R).T),
    "columns permuted": (U.flip(1), V.flip(1)),
    "both negated": (-U, -V),
    "ΔW negated": (-U, V),
    "outputs rotated": (Q @ U, V),
    "ΔW doubled": (2 * U, V),
}
table = pd.DataFrame(
    {
        name: {what: relative_change(f(*after), f(U, V)) for what, after in changes.items()}
        for name, f in invariants.items()
    }
)
table.style.format("{:.1e}").map(lambda change: "font-weight: bold" if change > 1e-6 else "opacity: 0.5")

# %% [markdown]
# Bold: it moved. Read the table by rows. Every invariant passes the first three, as it must. The **sign flip** $\Delta W \to -\Delta W$ is seen by products of first
# order only: neither the singular values nor the products with itself tell a LoRA from the one that does the opposite. Rotated outputs leave the
# singular values alone too, so that SVD knows how much a LoRA does and nothing about what.
#
# ## Does it matter? A question that SVD cannot answer
# Take the real LoRAs and, of each, the one that does the opposite. The question is which of the two one has been given. (The labels are made for this
# lesson; nobody fine-tuned a LoRA to be the opposite of another.)

# %%
both = Batch(
    spec,
    tuple(torch.cat([u, -u]).float() for u in batch.U),
    tuple(torch.cat([v, v]).float() for v in batch.V),
    batch.ranks.repeat(2, 1),
)
sign = torch.cat([torch.ones(len(loras)), torch.zeros(len(loras))])
order = torch.randperm(
    len(loras), generator=torch.Generator().manual_seed(0)
)  # a LoRA and its opposite fall on one side
known, unseen = (torch.cat([part, part + len(loras)]) for part in (order[:220], order[220:]))


def accuracy(name: str, epochs: int = 40) -> float:
    torch.manual_seed(0)
    model = make_model(name, spec, 1, ModelConfig(normalize=True))
    model.prepare(both[known], torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in known[torch.randperm(len(known))].split(32):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(model(both[rows])[:, 0], sign[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return float(((model(both[unseen])[:, 0] > 0) == sign[unseen].bool()).float().mean())


found = {title: accuracy(name) for title, name in {"MLP + SVD": "svd", "GL-net": "gl_net"}.items()}
figure = go.Figure(go.Bar(x=list(found), y=list(found.values()), text=[f"{value:.2f}" for value in found.values()]))
figure.add_hline(y=0.5, line={"dash": "dash"}, annotation_text="guessing").update_layout(
    title="LoRA or its opposite? 98 unseen LoRAs and their opposites",
    yaxis={"range": [0, 1], "title": "accuracy"},
    height=340,
)
figure

# %% [markdown]
# SVD is at exactly one half: it gives a LoRA and its opposite the same answer, so one of the two is wrong every time. (Forgetting need not hurt: in the
# paper's table 4 the size of a training set is told better by singular values than by GL-net. What is forgotten may be just noise.)

# %%
assert (
    table.loc[["R ⋆ (U, V)", "columns permuted", "both negated"]].drop(columns="(U, V), no invariant").to_numpy().max()
    < 1e-6
)
assert table.loc["ΔW negated", "σ"] < 1e-12 < table.loc["ΔW negated", "U Vᵀ"]
assert found["MLP + SVD"] == 0.5 and found["GL-net"] > 0.6

# %% [markdown]
# ## Exercises
# 1. $\operatorname{tr}(\Delta W)$, $\det(V^\top U)$ and $U^\top U$: which are invariants of $\mathrm{GL}(r)$, and from which can you make one?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# tr ΔW = tr VᵀU is; VᵀU → (VR⁻ᵀ)ᵀ UR = R⁻¹ (VᵀU) R, so its determinant, trace and eigenvalues are (for n = m). UᵀU → Rᵀ UᵀU R is not,
# but eigenvalues of (UᵀU)(VᵀV) are: they are the σ².
U2, V2 = changes["R ⋆ (U, V)"]
core, core2 = V.T @ U, V2.T @ U2
assert torch.allclose(core.trace(), core2.trace()) and torch.allclose(torch.linalg.det(core), torch.linalg.det(core2))
eigenvalues = torch.linalg.eigvals((U.T @ U) @ (V.T @ V)).real.sort(descending=True).values
assert torch.allclose(eigenvalues, invariants["σ"](U, V) ** 2)

# %% [markdown]
# 2. How many linear views $\Phi U V^\top \Psi^\top$ of what size are enough to know $\Delta W$ completely, for almost every $\Phi$ and $\Psi$, when it has rank $r$?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# Not one view of r × r, but two thin ones: A = ΔW Ψᵀ (n × r) and B = Φ ΔW (r × m) give ΔW = A (Φ A)⁺ B where Φ A is r × r and invertible.
W = U @ V.T
P, S = Phi[:r], Psi[:r]
A, B = W @ S.T, P @ W
assert torch.allclose(A @ torch.linalg.solve(P @ A, B), W, atol=1e-10)

# %% [markdown]
# 3. Check that GL-net as the library makes it keeps its answer under $\mathrm{GL}(r)$ to rounding, and the MLP does not.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
few = batch[torch.arange(4)]
turned = act(sample_for(few, GL, condition=100.0, generator=torch.Generator().manual_seed(1)), few)
for name, still in (("gl_net", True), ("mlp", False)):
    model = make_model(name, spec, 1, ModelConfig()).double().eval()
    with torch.no_grad():
        assert (relative_change(model(turned), model(few)) < 1e-9) == still
assert np.isfinite(table.to_numpy()).all()

# %% [markdown]
# **Next**: notebook 4, the other way: agree on one pair in each orbit.
