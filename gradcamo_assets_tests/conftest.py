"""For all tests: machines are shared and slow at times, so no example of hypothesis has a deadline."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
