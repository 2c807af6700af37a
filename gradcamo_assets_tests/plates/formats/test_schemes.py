"""Images without an index: the schemes that are recognised, and the pattern that is proposed for others."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from gradcamo_assets.errors import PlateError
from gradcamo_assets.plates.formats import detect_format, read_export
from gradcamo_assets.plates.formats.proposals import propose_configuration
from gradcamo_assets.plates.formats.schemes import SCHEMES, describe_scheme

PLANE = np.zeros((4, 4), np.uint16)


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, PLANE) if not name.endswith(".png") else (folder / name).touch()
    return folder


# Names as the microscopes write them, and the well, site, channel and z that they mean.
NAMES: dict[str, dict[str, tuple[str, int, str, int]]] = {
    "MetaXpress names": {
        "IM-Assays-EXP2_A01_s1_w1.TIF": ("A01", 1, "w1", 0),
        "IM-Assays-EXP2_A01_s1_w2.TIF": ("A01", 1, "w2", 0),
        "IM-Assays-EXP2_A02_s4_w1.TIF": ("A02", 4, "w1", 0),
        "IM-Assays-EXP2_A02_s4_w2.TIF": ("A02", 4, "w2", 0),
    },
    "Phenix names": {
        "r01c13f02p01-ch1sk1fk1fl1.tiff": ("A13", 2, "ch1", 0),
        "r01c13f02p02-ch1sk1fk1fl1.tiff": ("A13", 2, "ch1", 1),
        "r16c01f02p01-ch1.tiff": ("P01", 2, "ch1", 0),
        "r16c01f02p02-ch1.tiff": ("P01", 2, "ch1", 1),
    },
    "ScanR names": {
        "data/A1--W00001--P00003--Z00000--T00000--GFP.tif": ("A01", 3, "GFP", 0),
        "data/A1--W00001--P00003--Z00000--T00000--mcherry.tif": ("A01", 3, "mcherry", 0),
    },
    "IN Cell names": {
        "C - 03(fld 01 wv UV - DAPI).tif": ("C03", 1, "UV - DAPI", 0),
        "C - 03(fld 01 wv Blue - FITC).tif": ("C03", 1, "Blue - FITC", 0),
        "D - 12(fld 02 wv UV - DAPI).tif": ("D12", 2, "UV - DAPI", 0),
        "D - 12(fld 02 wv Blue - FITC).tif": ("D12", 2, "Blue - FITC", 0),
    },
    "CellVoyager names": {
        "220605_151046_C02_T0001F001L01A04Z01C01.tif": ("C02", 1, "C01", 0),
        "220605_151046_C02_T0001F001L01A04Z02C01.tif": ("C02", 1, "C01", 1),
    },
    "ArrayScan names": {
        "AS_09047_050428030001_O01f00d2.TIF": ("O01", 1, "d2", 0),
        "AS_09047_050428030001_O01f01d2.TIF": ("O01", 2, "d2", 0),
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_of_a_known_scheme_are_read_without_an_index(scheme: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p1", *NAMES[scheme], "thumb/x_thumb.tif")
    assert detect_format(folder) == scheme
    export = read_export(folder)
    rows = export.planes.select("file", "well", "site", "channel", "z").iter_rows()
    assert {file: (well, site, export.channels[c], z) for file, well, site, c, z in rows} == NAMES[scheme]
    assert dict(export.incomplete) == {}


def test_what_a_scheme_would_read_is_described(tmp_path: Path) -> None:
    names = [f"p_A0{well}_s{site}_{wave}.TIF" for well, site in ((1, 1), (2, 4)) for wave in ("w1", "w3")]
    folder = folder_of(tmp_path / "p1", *names)
    assert describe_scheme(folder, "MetaXpress names") == "MetaXpress names: 2 wells, sites 1 and 4, channels w1 and w3"
    one = folder_of(tmp_path / "p2", *(f"r01c01f{site:02d}p01-ch1sk1fk1fl1.png" for site in range(1, 10)))
    assert describe_scheme(one, "Phenix names") == "Phenix names: 1 well, 9 sites, channel ch1"


def test_z_steps_of_metaxpress_without_an_htd_are_not_mixed_with_projections(tmp_path: Path) -> None:
    names = [f"TimePoint_1/ZStep_{z}/p_A01_s1_w1.TIF" for z in range(3)]
    folder = folder_of(tmp_path / "p1", *names)
    assert detect_format(folder) == "MetaXpress names"
    assert read_export(folder).planes["z"].to_list() == [-1, 0, 1], "ZStep_0 is the projection"


def test_a_folder_with_the_name_of_an_image_is_no_image(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p1", *NAMES["Phenix names"])
    (folder / "r01c14f02p01-ch1.tif").mkdir()
    (folder / "r01c14f02p01-ch1.tif" / "r01c15f02p01-ch1.tif").symlink_to(folder / "r16c01f02p01-ch1.tiff")
    (folder / "linked").symlink_to(folder)
    with pytest.raises(PlateError, match="is a symbolic link"):
        read_export(folder)
    (folder / "r01c14f02p01-ch1.tif" / "r01c15f02p01-ch1.tif").unlink()
    assert set(read_export(folder).planes["file"]) == NAMES["Phenix names"].keys()


def test_an_index_goes_before_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p1", *NAMES["Phenix names"])
    (folder / "Index.xml").touch()
    assert detect_format(folder) == "Operetta"
    zarr = folder_of(tmp_path / "p2", *NAMES["Phenix names"])
    (zarr / "zarr.json").write_text("{}")
    assert detect_format(zarr) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_can_be_named_in_the_configuration(scheme: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p1", *NAMES[scheme], *(f"other{number}.tif" for number in range(20)))
    (tmp_path / "p1.toml").write_text(f'format = "{scheme}"\n')
    assert read_export(folder).planes.height == len(NAMES[scheme])


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (
            ["exp7_B02_field3_DAPI.tif", "exp7_B02_field3_GFP.tif", "exp7_C11_field4_DAPI.tif"],
            {"well": "B02", "site": "3", "channel": "DAPI"},
        ),
        (
            ["images/B02 (fld 1) ch2 z05.png", "images/B02 (fld 2) ch2 z06.png"],
            {"well": "B02", "site": "1", "channel": "2", "z": "05"},
        ),
        (["x-O01f00d2_q.tif", "x-O02f01d2_q.tif"], {"well": "O01", "site": "00"}),
        (["it's A1_001.tif", "it's A2_002.tif"], {"well": "A1", "site": "001"}),
    ],
)
def test_a_pattern_is_proposed_for_an_unknown_scheme(names: list[str], groups: dict[str, str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p1", *names)
    assert detect_format(folder) is None
    text = propose_configuration(folder, "p1")
    (line,) = re.findall(r"pattern = '[^']*'", text)
    pattern = tomllib.loads(line)["pattern"]
    match = re.fullmatch(pattern, names[0])
    assert match and match.groupdict() == groups
    assert f"it matches {len(names)} of the first {len(names)} names" in text and "p1.toml" in text
    with pytest.raises(PlateError, match="follow no known scheme"):
        read_export(folder)


def test_a_proposal_says_which_groups_to_mark(tmp_path: Path) -> None:
    assert "Mark well and channel in it" in propose_configuration(
        folder_of(tmp_path / "p1", "a_1.tif", "a_2.tif"), "p1"
    )
    (tmp_path / "p2").mkdir()
    assert propose_configuration(tmp_path / "p2", "p2") == ""
