from __future__ import annotations

import builtins

import numpy as np
import pandas as pd
import polars as pl
import pytest
from copairs.map import average_precision, mean_average_precision

from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.profiles import (
    ProfilesConfig,
    export_profiles,
    replicate_map,
    sphered_profiles,
    well_profiles,
)
from gradcamo_assets_tests.profiles.frames import embeddings

WELLS = {f"{row}{column:02d}": ("DMSO" if column < 3 else f"c{column}", 0.0 if column < 3 else 1.0)
         for row in "ABC" for column in range(1, 5)}  # fmt: skip


@pytest.fixture
def profiles() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    cells = embeddings(WELLS, lambda p, w, s, c, d: rng.normal(size=4) + 3 * (c == "c3"))
    both = pl.concat([cells, cells.with_columns(population=pl.lit("on_target"))])
    return sphered_profiles(well_profiles(both), ProfilesConfig()).table


def test_an_export_has_one_file_per_population_and_replaces_the_previous_one(profiles, tmp_path):
    folder = tmp_path / "P1" / "encoder-v1"
    export_profiles(profiles, folder)
    written = export_profiles(profiles.filter(population="all"), folder)
    assert written == [folder / "all.parquet"]
    assert [path.name for path in folder.iterdir()] == ["all.parquet"]


def test_prefixes_distinguish_metadata_and_features(profiles, tmp_path):
    """pycytominer expects features that start with a compartment, and metadata that start with ``Metadata_``."""
    path = export_profiles(profiles.filter(population="all"), tmp_path / "out")[0]
    frame = pd.read_parquet(path, engine="pyarrow")
    features = [name for name in frame if name.startswith(("Cells", "Nuclei", "Cytoplasm"))]
    assert features == [f"Cells_Embedding_{n:04d}" for n in range(1, 5)]
    assert [name for name in frame if name not in features] == [n for n in frame if n.startswith("Metadata_")]
    assert all(pd.api.types.is_float_dtype(frame[name]) for name in features)
    np.testing.assert_array_equal(frame[features], np.array(profiles.filter(population="all")["profile"].to_list()))
    assert {"Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Dose", "Metadata_pert_type"} < set(frame)


def test_pycytominer_reads_the_export(profiles, tmp_path):
    import pycytominer
    from pycytominer.cyto_utils import infer_cp_features, load_profiles

    path = export_profiles(profiles.filter(population="all"), tmp_path / "out")[0]
    frame = load_profiles(path)
    assert infer_cp_features(frame) == [f"Cells_Embedding_{n:04d}" for n in range(1, 5)]
    assert len(infer_cp_features(frame, metadata=True)) == frame.shape[1] - 4
    normalised = pycytominer.normalize(path, samples="Metadata_pert_type == 'negcon'", method="standardize")
    assert len(normalised) == len(WELLS)


def test_copairs_reads_the_export(profiles, tmp_path):
    path = export_profiles(profiles.filter(population="all"), tmp_path / "out")[0]
    frame = pd.read_parquet(path)
    treatment = ["Metadata_Compound", "Metadata_Dose", "Metadata_Dose_Unit"]
    precision = average_precision(
        frame.filter(regex="^Metadata_"), frame.filter(regex="^(?!Metadata_)").to_numpy(), pos_sameby=treatment,
        pos_diffby=[], neg_sameby=[], neg_diffby=["Metadata_Compound"], progress_bar=False,
    )  # fmt: skip
    found = mean_average_precision(precision, treatment, null_size=2000, threshold=0.05, seed=0, progress_bar=False)
    ours = replicate_map(profiles.filter(population="all"))
    names = ["Metadata_Compound", "mean_average_precision"]
    found = found.sort_values("Metadata_Compound", ignore_index=True)
    ours = ours.sort("Metadata_Compound").to_pandas()
    pd.testing.assert_frame_equal(found[names], ours[names], check_dtype=False)
    # copairs does not count random rankings that are as good as the one found.
    assert (found["p_value"] <= ours["p_value"]).all()


def test_anndata_equals_parquet(profiles, tmp_path):
    anndata = pytest.importorskip("anndata")
    paths = export_profiles(profiles, tmp_path / "out", ("parquet", "h5ad"))
    assert sorted(path.name for path in paths) == [
        "all.h5ad", "all.parquet", "on_target.h5ad", "on_target.parquet",
    ]  # fmt: skip
    table, frame = anndata.read_h5ad(tmp_path / "out" / "all.h5ad"), pd.read_parquet(tmp_path / "out" / "all.parquet")
    np.testing.assert_array_equal(table.X, frame[list(table.var_names)])
    assert table.obs["Metadata_Well"].tolist() == frame["Metadata_Well"].tolist()
    assert table.obs["Metadata_Dose_Unit"].tolist() == frame["Metadata_Dose_Unit"].tolist()


def test_without_anndata_the_error_names_the_remedy(profiles, tmp_path, monkeypatch):
    real_import = builtins.__import__

    def import_without_anndata(name, *args, **kwargs):
        if name == "anndata":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    export_profiles(profiles, tmp_path / "before")
    monkeypatch.setattr(builtins, "__import__", import_without_anndata)
    for name, expected in (("out", []), ("before", ["all.parquet", "on_target.parquet"])):
        with pytest.raises(GradcamoError, match="pip install"):
            export_profiles(profiles, tmp_path / name, ("h5ad",))
        assert sorted(path.name for path in (tmp_path / name).glob("*")) == expected


def test_several_versions_are_refused(profiles, tmp_path):
    two = pl.concat([profiles, profiles.with_columns(model_version=pl.lit("2"))])
    with pytest.raises(GradcamoError, match="several model versions"):
        export_profiles(two, tmp_path / "out")
