"""Score stored crops with a trained encoder: embeddings and Grad-CAMO in one pass, audits, and a background baseline.

This package returns rows; storing them and scheduling the work belong to other packages.
"""
