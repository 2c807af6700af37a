"""For all tests: the number of hypothesis examples, and warnings of our own code as errors.

``--hypothesis-profile=thorough`` tries more examples. Machines are shared and slow at times, so none has a deadline.
"""

import warnings

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=200)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _own_warnings_are_errors() -> None:
    """Deprecated calls of ours fail; those between libraries do not concern us. Pytest restores the filters."""
    warnings.filterwarnings("error", module=r"gradcamo_assets(\.|$)")
