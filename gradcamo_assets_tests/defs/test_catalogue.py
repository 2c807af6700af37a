"""Every asset has a description, and the columns of its table with their comments."""

from __future__ import annotations

import duckdb

from gradcamo_assets_tests.defs.conftest import Bench


def test_every_asset_has_a_description_and_a_group(bench: Bench) -> None:
    for spec in bench.definitions.resolve_all_asset_specs():
        assert spec.description and spec.group_name and spec.kinds, spec.key


def test_columns_are_those_of_the_database(scored_bench: Bench) -> None:
    specs = {spec.key.to_user_string(): spec for spec in scored_bench.definitions.resolve_all_asset_specs()}
    with duckdb.connect(str(scored_bench.home.database), read_only=True) as database:
        for asset in ("cells", "crops", "gradcamo_scores", "profiles"):
            found = database.execute(
                "SELECT column_name, comment FROM duckdb_columns() WHERE schema_name = 'lake' AND table_name = ?",
                [asset.removeprefix("gradcamo_")],
            ).fetchall()
            schema = specs[asset].metadata["dagster/column_schema"]
            assert {(column.name, column.description) for column in schema.columns} == set(found)
