"""Shared configuration: hypothesis examples have no deadline, since test machines may be slow."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
