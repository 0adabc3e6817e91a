"""What an adapted module stores, which group acts on it, and what ΔW it stands for (paper, sections 2, 3.3.1,
appendix E).

Each parametrisation holds named slots, of any float dtype and on any device (also meta, where only shapes are
known). No scale: that belongs to the module (`core/lora.py`). A weight of shape (n, d₁, d₂, …) is flattened to n ×
m with m = d₁·d₂·…, and ΔW = U Vᵀ with U: (n, k), V: (m, k) is its exact low-rank form.
"""

from lol_core.core.parametrisation.base import Parametrisation
from lol_core.core.parametrisation.blocks import Blocks, Place
from lol_core.core.parametrisation.experts import Experts
from lol_core.core.parametrisation.hadamard import Hadamard
from lol_core.core.parametrisation.kronecker import Kronecker
from lol_core.core.parametrisation.low_rank import LowRank
from lol_core.core.parametrisation.magnitude import Magnitude
from lol_core.core.parametrisation.tucker import Tucker
from lol_core.core.parametrisation.whole import Whole

__all__ = [
    "Blocks",
    "Experts",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Magnitude",
    "Parametrisation",
    "Place",
    "Tucker",
    "Whole",
]
