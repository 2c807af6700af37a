"""Sites keep their numbers, and a file that is named for two channels or fields is told or a bad field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcamo_assets.plates.formats import Export
from gradcamo_assets.plates.formats.planes import build_export
from gradcamo_assets.plates.formats.sites import number_sites


@pytest.mark.parametrize(
    ("names", "sites", "told"),
    [
        (["1", "3"], [1, 3], []),
        (["01", "3", "10"], [1, 3, 10], []),
        (["1.0", "3.0", "5.0"], [1, 3, 5], []),
        (["0", "2", "10"], [1, 3, 11], ["'0' is site 1", "'2' is site 3", "'10' is site 11"]),
        (["1", "3", "5", "IXMtest"], [1, 3, 5, 6], ["'IXMtest' is site 6"]),
        (["a9", "a10"], [1, 2], ["'a9' is site 1", "'a10' is site 2"]),
    ],
)
def test_site_numbers_are_kept_and_any_other_numbering_is_told(
    names: list[str], sites: list[int], told: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / f"{name}.tif").touch()
    rows = pl.DataFrame({"well": "a1", "site": names, "channel": 0, "z": 0, "file": [f"{name}.tif" for name in names]})
    export = build_export(tmp_path, rows, ["DNA"], format="f", source="s", voxel_size=(None, 1, 1))
    assert export.planes["site"].to_list() == sites and set(export.planes["well"]) == {"A01"}
    assert export.planes["file"].to_list() == [f"{name}.tif" for name in names]
    assert list(export.problems) == ([f"sites are numbered from 1, so {', '.join(told)}"] if told else [])


@given(
    numbers=st.sets(st.integers(0, 10**8 - 1), max_size=8),
    others=st.sets(st.text("abc/ ", min_size=1, max_size=4), max_size=4),
    spell=st.sampled_from([str, "{:012d}".format, "{}.0".format]),
)
def test_every_site_has_its_own_number_and_the_order_stays(
    numbers: set[int], others: set[str], spell: Callable[[int], str]
) -> None:
    sites, notes = number_sites([*map(spell, numbers), *others])
    assert len(set(sites.values())) == len(numbers) + len(others) and min(sites.values(), default=1) >= 1
    assert {sites[spell(number)] - number for number in numbers} <= {int(0 in numbers)}
    assert all(sites[name] > sites[spell(number)] for name in others for number in numbers)
    assert bool(notes) == (bool(others) or 0 in numbers)


def build_from(tmp_path: Path, rows: list[tuple[str, int, int, str]]) -> Export:
    """An export of the channels DNA, AGP and Mito from rows of well, site, channel and file."""
    for *_, file in rows:
        (tmp_path / file).touch()
    table = pl.DataFrame(rows, ["well", "site", "channel", "file"], orient="row")
    table = table.with_columns(pl.col("site").cast(pl.String), z=pl.lit(0))
    return build_export(tmp_path, table, ["DNA", "AGP", "Mito"], format="f", source="s", voxel_size=(None, 1, 1))


def rows_of(sites: int = 3) -> list[tuple[str, int, int, str]]:
    return [
        (well, site, channel, f"{well}_{site}_{channel}.tif")
        for well in ("A01", "A02")
        for site in range(1, sites + 1)
        for channel in range(3)
    ]


def test_two_channels_of_one_file_in_every_field_are_noted(tmp_path: Path) -> None:
    rows = [(well, site, c, f"{well}_{site}_{min(c, 1)}.tif") for well, site, c, _ in rows_of()]
    export = build_from(tmp_path, rows)
    assert dict(export.incomplete) == {} and export.planes.height == 18
    assert export.problems == ("AGP and Mito name the same files in every field, for example A01_1_1.tif",)


def test_two_channels_of_one_file_in_one_field_are_a_bad_field(tmp_path: Path) -> None:
    rows = [(w, s, c, "A02_1_1.tif" if (w, s, c) == ("A02", 1, 2) else file) for w, s, c, file in rows_of()]
    export = build_from(tmp_path, rows)
    assert dict(export.incomplete) == {("A02", 1): "AGP and Mito name the same file, A02_1_1.tif"}
    assert export.problems == ()


@pytest.mark.parametrize("other", [("A01", 2), ("A02", 1)], ids=["site", "well"])
def test_two_fields_of_one_file_are_both_bad(other: tuple[str, int], tmp_path: Path) -> None:
    rows = [(w, s, c, "A01_1_2.tif" if (w, s, c) == (*other, 2) else file) for w, s, c, file in rows_of()]
    export = build_from(tmp_path, rows)
    well, site = other
    assert dict(export.incomplete) == {
        ("A01", 1): f"{well} site {site} names the same file, A01_1_2.tif",
        other: "A01 site 1 names the same file, A01_1_2.tif",
    }


def test_files_that_all_fields_share_are_noted(tmp_path: Path) -> None:
    export = build_from(tmp_path, [(w, s, c, f"{w}_{c}.tif") for w, s, c, _ in rows_of(sites=2)])
    assert dict(export.incomplete) == {}
    assert export.problems == (
        "every field names a file of another field, for example A01 site 1 and A01 site 2 name A01_0.tif",
    )
