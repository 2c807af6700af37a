"""Grad-CAMO for (3D) Cell Painting: test whether a learned single-cell profile depends on its cell.

ARCHITECTURE.md describes the packages and the allowed imports between them.
"""

import os

# Allocate large tensors in huge pages (Linux): with small pages the kernel spends a third of a forward pass on
# allocation. torch reads the variable when it allocates its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
