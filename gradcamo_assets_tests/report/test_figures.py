from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from gradcamo_assets import report as figures
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.report.cell_pictures import upsampled
from gradcamo_assets_tests.report.made_up import ONE_SCORE, crops, every_figure, scores, treatments


@pytest.fixture(scope="module")
def drawn():
    return every_figure()


def test_every_figure_is_a_small_png_of_the_requested_width(drawn):
    for name, figure in drawn.items():
        png = figures.to_png(figure)
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            assert picture.size[0] == 700, name
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5, name
        assert len(png) < 80_000, name


def test_heat_maps_keep_their_colours_beside_noisy_crops(drawn):
    png = figures.to_png(drawn["crops"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    second_map = pixels[:200, 530:690]  # The map of this cell lies on the target.
    reddish = (second_map[..., 0] - second_map[..., 2] > 100) & (second_map[..., 1] < 180)
    assert reddish.sum() > 300


@pytest.mark.parametrize(
    ("depth", "voxel_size", "labels"),
    [
        (6, (2.0, 0.5, 0.5), ("y (µm)", "z (µm)", 20.0)),
        (6, (None, 0.5, 0.5), ("y (pixels)", "z (slices)", 40.0)),
        (6, (None, None, None), ("y (pixels)", "z (slices)", 40.0)),
    ],
)
def test_axes_are_in_pixels_where_the_voxel_size_is_unknown(depth, voxel_size, labels):
    cells = np.zeros((depth, 40, 30), np.uint32)
    cells[:, 10:20, 10:20] = 1
    figure = figures.segmentation_overlay(np.ones((1, *cells.shape)), cells, voxel_size=voxel_size)
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel(), max(upper.get_ylim())) == labels
    assert lower.get_xlabel().startswith(labels[0].replace("y", "x", 1))


@pytest.mark.parametrize(
    ("voxel_size", "unit", "height"), [((None, 0.5, 0.5), "µm", 20.0), ((None, None, None), "pixels", 40.0)]
)
def test_a_plane_has_no_section_and_no_slices(voxel_size, unit, height):
    cells = np.zeros((1, 40, 30), np.uint32)
    cells[:, 10:20, 10:20] = 1
    figure = figures.segmentation_overlay(np.ones((1, *cells.shape)), cells, voxel_size=voxel_size, title="A01, site 1")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), max(axes.get_ylim())) == (f"x ({unit})", f"y ({unit})", height)
    assert axes.get_title() == "A01, site 1\n1 cells" and not axes.lines
    maps = figures.crops_with_maps(*crops(2, depth=1))
    assert not any("slice" in axes.get_title(loc="right") for axes in maps.axes)


def test_a_film_has_a_frame_for_each_figure():
    wells = [pl.DataFrame({"Metadata_Well": ["B03", "H12"], "n": values}) for values in ([5.0, 7.0], [7.0, 5.0])]
    film = figures.to_gif([figures.plate_heat_map(table, "n", "Cells") for table in wells])
    with Image.open(io.BytesIO(film)) as opened:
        assert (opened.n_frames, opened.size[0]) == (2, 420)


@pytest.mark.parametrize("width", [333, 640, 1001])
def test_widths_are_exact(drawn, width):
    with Image.open(io.BytesIO(figures.to_png(drawn["curves"], width))) as picture:
        assert picture.size[0] == width


@pytest.mark.parametrize("shape", [((1, 4, 4), (1, 16, 16)), ((3, 5, 7), (12, 33, 20)), ((6, 8, 8), (6, 8, 8))])
def test_maps_are_upsampled_as_they_are_scored(shape):
    import torch

    small, large = shape
    cam = np.random.default_rng(0).random(small)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(cam)[None, None], size=large, mode="trilinear", align_corners=False
    )
    np.testing.assert_allclose(upsampled(cam, large), expected[0, 0].numpy(), atol=1e-6)


def test_the_slice_with_the_largest_target_is_drawn():
    images, labels, cams, titles = crops(1)
    labels[labels == 1] = 0
    labels[0, 2, :4, :4] = labels[0, 9, :20, :20] = 1
    figure = figures.crops_with_maps(images, labels, cams, titles)
    assert any(axes.get_title(loc="right") == "slice 10 of 12" for axes in figure.axes)


def test_the_pipeline_draws_the_given_shares():
    images, labels, cams, _ = crops(1)
    bars = figures.pipeline_on_one_cell(images[0], labels[0], cams[0], ONE_SCORE).axes[-1]
    assert [bar.get_width() for bar in bars.patches] == [0.62, 0, 0.38]
    assert [text.get_text() for text in bars.texts] == ["0.62", "no value", "0.38"]
    assert {line.get_label(): line.get_xdata()[0] for line in bars.lines} == {"chance": 0.1, "ceiling": 0.9}


def test_the_last_pipeline_panel_draws_the_map_only_inside_the_mask():
    images, labels, cams, _ = crops(1)
    overlap = figures.pipeline_on_one_cell(images[0], labels[0], cams[0], ONE_SCORE).axes[3].images[-1]
    np.testing.assert_array_equal(overlap.get_alpha() > 0, labels[0, 6] == 1)


def test_a_stain_has_one_scale_for_all_doses():
    images, labels, _, _ = crops(3)
    axes = figures.crops_by_treatment(images, labels, ["DNA", "ER", "Mito"], treatments(2, 1)).axes
    assert [panel.get_title() for panel in axes[:3]] == ["DMSO", "compound 01\n1 uM", "compound 02\n1 uM"]
    limits = [panel.images[0].get_clim() for panel in axes]
    assert [len(set(limits[row * 3 : row * 3 + 3])) for row in range(3)] == [1, 1, 1]
    assert len(set(limits)) == 3


def test_many_treatments_have_a_row_per_compound():
    one = crops(1)
    images, labels = (np.repeat(array, 10, axis=0) for array in one[:2])
    figure = figures.crops_by_treatment(images, labels, ["DNA", "ER", "Mito"], treatments(3, 3))
    grid = np.array(figure.axes).reshape(4, 3)
    assert [panel.get_title() for panel in grid[0]] == ["DMSO", "", ""]
    for number, row in enumerate(grid[1:], start=1):
        assert row[0].get_ylabel() == f"compound {number:02d}"
        assert [panel.get_title() for panel in row] == [f"{dose} uM" for dose in range(1, 4)]
    figure = figures.crops_by_treatment(images, labels, ["DNA", "ER", "Mito"], treatments(9, 1))
    titles = [panel.get_title() for panel in figure.axes]
    assert len(titles) == 16 and titles[:2] == ["DMSO", "compound 01\n1 uM"] and titles[9] == "compound 09\n1 uM"


@pytest.mark.parametrize(
    ("compounds", "doses", "subject", "legend"),
    [
        (2, 1, "Compound and site", ["control", "compound 01", "compound 02"]),
        (1, 2, "Dose and site", ["control", "1 uM", "2 uM"]),
        (12, 2, "Dose and site", ["control", "1 uM", "2 uM"]),
        (12, 0, "Dose and site", ["control", "no dose"]),
    ],
)
def test_the_umap_is_coloured_by_compound_if_there_are_few(compounds, doses, subject, legend):
    rows = treatments(compounds, doses or 1)
    if not doses:
        rows[1:] = [{**row, "Metadata_Dose": None} for row in rows[1:]]
    points = {"umap_x": 0.0, "umap_y": 1.0, "gradcamo": 0.5}
    table = pl.DataFrame([{**row, **points, "Metadata_Site": site} for row in rows for site in (1, 2)])
    figure = figures.umap_scatter(table)
    assert figure.axes[0].get_title() == subject
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*legend, "site 1", "site 2"]


def test_the_line_over_the_ceiling_is_the_median_per_eighth():
    table = scores()
    line = next(line for line in figures.score_against_ceiling(table).axes[0].lines if "eighth" in line.get_label())
    ranked = table.sort("gradcamo_max")["gradcamo"].to_numpy()
    expected = [np.median(part) for part in np.array_split(ranked, 8)]
    np.testing.assert_allclose(line.get_ydata(), expected, atol=0.01)


def test_wells_are_drawn_at_their_positions():
    wells = pl.DataFrame({"Metadata_Well": ["b3", "H12"], "n": [5.0, 7.0]})
    grid = figures.plate_heat_map(wells, "n", "Cells").axes[0].images[0].get_array().filled(np.nan)
    assert grid.shape == (8, 12)
    assert (grid[1, 2], grid[7, 11]) == (5, 7)
    assert np.isnan(grid).sum() == 94
    assert figures.plate_heat_map(wells.with_columns(Metadata_Well=pl.lit("AF48")), "n", "Cells").axes
    with pytest.raises(GradcamoError):
        figures.plate_heat_map(wells.with_columns(Metadata_Well=pl.lit("17")), "n", "Cells")


def test_empty_figures_have_a_message():
    table = scores().clear()
    empty = [
        figures.umap_scatter(table),
        figures.score_distributions(table),
        figures.score_intervals(
            table.with_columns(on_target_fraction=pl.col("gradcamo"), n_cells=pl.col("Metadata_Site"))
        ),
        figures.training_curves(pl.DataFrame({"epoch": []})),
        figures.plate_heat_map(table, "gradcamo", "Score"),
        figures.crops_with_maps(*[array[:0] for array in crops(1)]),
        figures.crops_by_treatment(*[array[:0] for array in crops(1)[:2]], ["DNA"], []),
        figures.score_against_ceiling(table),
    ]
    for figure in empty:
        assert "No " in figure.texts[0].get_text()
        assert figures.to_png(figure)


def test_missing_scores_and_constant_values_are_drawn():
    table = scores().with_columns(pl.when(pl.col("Metadata_Site") == 1).then(None).otherwise(0.5).alias("gradcamo"))
    for figure in (figures.umap_scatter(table), figures.score_distributions(table)):
        assert figures.to_png(figure)


def test_illumination_of_all_channels_has_one_scale() -> None:
    light = np.stack([np.full((8, 8), 1.0), np.linspace(0.5, 1.5, 64).reshape(8, 8)]).astype(np.float32)
    figure = figures.illumination_maps(light, ["DNA", "ER"])
    panels = [axes for axes in figure.axes if axes.images]
    assert [panel.get_title().split("\n") for panel in panels] == [["DNA", "1.00 to 1.00"], ["ER", "0.50 to 1.50"]]
    assert {panel.images[0].get_clim() for panel in panels} == {(0.5, 1.5)}
