"""Crops and a model in, rows out: embedding and Grad-CAMO in one pass, and the question of what is still to be scored.

Knows crops, bundles and the score; not where rows are kept, and not who asks.
"""
