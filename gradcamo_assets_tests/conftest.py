"""For all tests: how many examples hypothesis tries. ``--hypothesis-profile=thorough`` tries more of them.

Machines are shared and slow at times, so no example has a deadline.
"""

from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("default")
