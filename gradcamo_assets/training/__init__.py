"""Split wells, train encoders, and keep them in a model registry with a record of every promotion.

Scheduling is left to ``defs``.
"""
