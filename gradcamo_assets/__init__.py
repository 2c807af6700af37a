"""Grad-CAMO for (3D) Cell Painting: does a learned single-cell profile look at its cell, or does it cheat?

The rooms of this package and what may import what are described in ARCHITECTURE.md.
"""

__version__ = "0.1.0"
