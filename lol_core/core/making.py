"""One network is made at a time in a process."""

from __future__ import annotations

from threading import RLock

MAKING = RLock()
"""Held while a network is made or opened: meanwhile diffusers, transformers and peft put the parameters of every
`nn.Module` of the process onto the meta device, or leave them as they lie in memory, whichever thread makes it.
"""
