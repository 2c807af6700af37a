"""Encoders: the 3D EfficientNet, a registry that builds encoders by name, and bundles of trained encoders.

This package does not depend on plates, stored crops or MLflow. It tests encoders with ``explain``. Modules that define
networks import torch; import them where they are used.
"""
