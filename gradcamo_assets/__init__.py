"""Grad-CAMO for (3D) Cell Painting: does a learned single-cell profile look at its cell, or does it cheat?

ARCHITECTURE.md describes the packages and which of them may import which.
"""

import os

# Large tensors in huge pages (Linux): else the kernel spends a third of a forward pass on handing out small ones.
# torch reads it with the first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
