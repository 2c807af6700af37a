"""Test the text of errors."""

from __future__ import annotations

from gradcamo_assets.errors import GradcamoError


def test_an_error_names_the_place_and_the_remedy() -> None:
    error = GradcamoError("the chunk is damaged", "Copy it again.", plate="P1", well="B03", site=2, path="x/y")
    assert str(error) == "plate P1, well B03, site 2, file x/y: the chunk is damaged. Copy it again."
