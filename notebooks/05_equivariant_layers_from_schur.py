# %% [markdown]
# # 5 · Equivariant layers, found numerically
#
# GL-net begins with layers that let $R$ pass: $F(UR, V R^{-\top}) = (\tilde U R, \tilde V R^{-\top})$ when $F(U, V) = (\tilde U, \tilde V)$.
# Which *linear* maps do that? Proposition 1 of the paper says: exactly $F(U, V) = (\Phi U, \Psi V)$. Its proof uses Schur's lemma. Here a computer finds it
# without knowing any of that: write down what equivariance demands, and look at the null space.

# %%
import pandas as pd
import plotly.graph_objects as go
import torch

from lol_core.core.groups import GL, GROUPS, Group
from lol_core.core.symmetry import act_on, relative_change
from lol_core.insight import plots
from lol_core.learning.models.layers import EquivariantLinear, EquivariantNonlinearity

torch.set_default_dtype(torch.float64)
n, m, r = 3, 2, 2
n_out, m_out = 2, 2

# %% [markdown]
# ## Linear equations for a linear map
# Stack the entries of $U$ ($n \times r$) and $V$ ($m \times r$) into one vector of length $(n + m) r$. Turning by $R$ is then a matrix $\rho(R)$:
# on $\operatorname{vec} U$ (row by row) it is $I_n \otimes R^\top$, on $\operatorname{vec} V$ it is $I_m \otimes R^{-1}$.


# %%
def rho(R: torch.Tensor, n: int, m: int) -> torch.Tensor:
    inverse = torch.linalg.inv(R)
    return torch.block_diag(torch.kron(torch.eye(n), R.T.contiguous()), torch.kron(torch.eye(m), inverse.contiguous()))


g = torch.Generator().manual_seed(0)
U, V, R = torch.randn(n, r, generator=g), torch.randn(m, r, generator=g), GL.sample(r, condition=5.0, generator=g)
turned = torch.cat([factor.flatten() for factor in act_on(R, U, V)])
assert torch.allclose(rho(R, n, m) @ torch.cat([U.flatten(), V.flatten()]), turned)

# %% [markdown]
# A linear map is a matrix $L$ with $(n' + m') r$ rows and $(n + m) r$ columns. It is equivariant when $L\,\rho(R) = \rho'(R)\,L$ for all $R$: for each $R$
# a set of linear equations in the entries of $L$. A few random $R$ already give all equations there are. Their null space is the space of equivariant maps.


# %%
def equivariant_maps(group: Group, n: int, m: int, n_out: int, m_out: int, r: int, draws: int = 8) -> torch.Tensor:
    """A basis of the equivariant linear maps: (dimension, (n' + m') r, (n + m) r)."""
    rows, columns = (n_out + m_out) * r, (n + m) * r
    g = torch.Generator().manual_seed(1)
    equations = []
    for _ in range(draws):
        R = group.sample(r, condition=4.0, generator=g)
        # vec(L ρ) = (I ⊗ ρᵀ) vec L and vec(ρ' L) = (ρ' ⊗ I) vec L, row by row
        equations.append(
            torch.kron(torch.eye(rows), rho(R, n, m).T.contiguous())
            - torch.kron(rho(R, n_out, m_out), torch.eye(columns))
        )
    _, values, vectors = torch.linalg.svd(torch.cat(equations))
    return vectors[values < 1e-9].reshape(-1, rows, columns)


basis = equivariant_maps(GL, n, m, n_out, m_out, r)
print(
    f"{(n_out + m_out) * r} × {(n + m) * r} = {(n_out + m_out) * r * (n + m) * r} entries, {len(basis)} dimensions left"
)
print(f"Φ has n' n = {n_out * n} entries and Ψ has m' m = {m_out * m}: together {n_out * n + m_out * m}")

# %% [markdown]
# The dimension is that of $(\Phi, \Psi)$. And this is how any of these maps looks:

# %%
L = torch.einsum("k,kab->ab", torch.randn(len(basis), generator=g), basis)
figure = plots.matrix(L.numpy(), "A random equivariant linear map")
figure.update_traces(texttemplate="").add_hline(y=n_out * r - 0.5).add_vline(x=n * r - 0.5)
figure

# %% [markdown]
# Two blocks and nothing between them: $U$ feeds $\tilde U$ only, $V$ feeds $\tilde V$ only. And each block is made of little multiples of the identity $I_r$:
# it is $\Phi \otimes I_r$. That is Schur's lemma at sight: $\mathbb{R}^r$ with $R$ and $\mathbb{R}^r$ with $R^{-\top}$ are irreducible and different, so
# between them there is only zero, and from each to itself only multiples of the identity. Read $\Phi$ and $\Psi$ off and compare with the library's layer:

# %%
Phi = L[: n_out * r, : n * r].reshape(n_out, r, n, r)[:, 0, :, 0]
Psi = L[n_out * r :, n * r :].reshape(m_out, r, m, r)[:, 0, :, 0]
layer = EquivariantLinear(1, n, m, n_out=n_out, m_out=m_out)
with torch.no_grad():
    layer.Phi.copy_(Phi[None])
    layer.Psi.copy_(Psi[None])
    ours = torch.cat([part.flatten() for part in layer(U[None, None], V[None, None])])
assert torch.allclose(L @ torch.cat([U.flatten(), V.flatten()]), ours)

# %% [markdown]
# ## Fewer symmetries, more maps
# The smaller the group, the fewer the equations. Count, for each group, and compare with what representation theory says.

# %%
expected = {
    "gl": n_out * n + m_out * m,
    "o": (n_out + m_out) * (n + m),  # R⁻ᵀ = R: U and V turn alike, so they may mix
    "permutation": min(r, 2) * (n_out + m_out) * (n + m),  # the identity and, another one for r > 1, the matrix of ones
    "scaling": r * (n_out * n + m_out * m),  # every column is on its own
}
counted = pd.DataFrame(
    {
        "found": {group.key: len(equivariant_maps(group, n, m, n_out, m_out, r)) for group in GROUPS},
        "representation theory": expected,
    }
).loc[list(expected)]
counted

# %%
bars = go.Figure([go.Bar(x=counted.index, y=counted[column], name=column) for column in counted])
bars.update_layout(title="Dimension of the equivariant linear maps", height=320)
bars

# %% [markdown]
# ## The nonlinearity
# ReLU on the entries of $\tilde U$ would break everything: it does not commute with $R$. Equation (6) scales whole rows instead, by a number that does not change
# with $R$: the row sums of $U V^\top$.

# %%
U, V = torch.randn(1, 6, r, generator=g), torch.randn(1, 5, r, generator=g)
R = GL.sample(r, condition=10.0, generator=g)
rows = []
for name, F in {
    "σ_GL (6)": EquivariantNonlinearity("sigmoid"),
    "ReLU on entries": lambda U, V: (U.relu(), V.relu()),
}.items():
    first = torch.cat([part.flatten() for part in F(*act_on(R, U, V))])
    second = torch.cat([part.flatten() for part in act_on(R, *F(U, V))])
    rows.append({"nonlinearity": name, "‖F(R ⋆ x) − R ⋆ F(x)‖ relative": relative_change(first, second)})
off = pd.DataFrame(rows).set_index("nonlinearity")
off.style.format("{:.1e}")

# %%
assert (counted["found"] == counted["representation theory"]).all()
assert off.iloc[0, 0] < 1e-9 and (off.iloc[1, 0] > 0.1 or r == 1)  # at r = 1 ReLU commutes with every R > 0

# %% [markdown]
# ## Exercises
# 1. Does it depend on $r$? Try $r = 1$ and $r = 3$.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
for other_r in (1, 3):
    assert (
        len(equivariant_maps(GL, n, m, n_out, m_out, other_r)) == n_out * n + m_out * m
    )  # the layer knows nothing of the rank: it takes LoRAs of any

# %% [markdown]
# 2. What are the *invariant* linear functions of $(U, V)$, those with $f(R \star x) = f(x)$?

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
# None but zero: ℓ ρ(R) = ℓ for all R; take R = cI and ℓ(cU, V/c) = ℓ(U, V) for all c. That is why GL-net multiplies: invariants begin at second order.
g = torch.Generator().manual_seed(2)
equations = torch.cat(
    [rho(GL.sample(r, condition=4.0, generator=g), n, m).T - torch.eye((n + m) * r) for _ in range(8)]
)
assert torch.linalg.svdvals(equations).min() > 1e-6

# %% [markdown]
# 3. And the invariant *bilinear* functions? Find their dimension the same way, with $\rho \otimes \rho$.

# %% tags=["hide-cell"] jupyter={"source_hidden": true}
g = torch.Generator().manual_seed(3)
small = [rho(GL.sample(r, condition=4.0, generator=g), n, m) for _ in range(8)]
equations = torch.cat([torch.kron(matrix, matrix).T - torch.eye(len(matrix) ** 2) for matrix in small])
dimension = int((torch.linalg.svdvals(equations) < 1e-9).sum())
# U_i · V_j and V_j · U_i for every row i of U and j of V: the entries of U Vᵀ, twice. All that an invariant of second order can read is ΔW.
assert dimension == 2 * n * m

# %% [markdown]
# **Next**: notebook 6, GL-net built of these layers and trained, beside its controls.
