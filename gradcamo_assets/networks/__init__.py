"""Encoders: the 3D EfficientNet, the registry that builds them by name, and the bundle a trained one is kept in.

Knows tensors and files, not plates, crops on disk, MLflow or the score. Modules that define networks import
torch; import them where they are used.
"""
