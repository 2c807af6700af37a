"""Test the text of errors."""

from __future__ import annotations

from gradcamo_assets.errors import GradcamoError, one_line


def test_an_error_names_the_place_and_the_remedy() -> None:
    error = GradcamoError("the chunk is damaged", "Copy it again.", plate="P1", well="B03", site=2, path="x/y")
    assert str(error) == "plate P1, well B03, site 2, file x/y: the chunk is damaged. Copy it again."


def test_a_long_message_becomes_one_short_line() -> None:
    assert one_line(ValueError("2 problems:\n\n  first\n  second")) == "2 problems: first second"
    assert one_line(ValueError("x" * 500)) == "x" * 200 and one_line(ValueError("a b c"), 3) == "a b"
    assert one_line(KeyError()) == "KeyError" and one_line(ValueError("No. For further information visit x")) == "No"
