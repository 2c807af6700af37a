"""What the UI's catalogue says of each asset: words, owner, columns with their comments, and whence columns come."""

from __future__ import annotations

import dagster as dg
import duckdb

from gradcamo_assets_tests.orchestration.conftest import Bench


def test_every_asset_has_words_an_owner_and_a_group(scored_bench: Bench) -> None:
    for spec in scored_bench.definitions.resolve_all_asset_specs():
        assert spec.description and spec.owners and spec.group_name and spec.kinds, spec.key


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


def test_columns_come_from_columns_that_are_there(scored_bench: Bench) -> None:
    specs = {spec.key: spec for spec in scored_bench.definitions.resolve_all_asset_specs()}
    seen = 0
    for key in specs:
        last = scored_bench.instance.get_latest_materialization_event(key)
        lineage = last.asset_materialization.metadata.get("dagster/column_lineage") if last else None  # type: ignore[union-attr]
        if isinstance(lineage, dg.TableColumnLineageMetadataValue):
            for name, sources in lineage.value.deps_by_column.items():
                for there, column in ((key, name), *((dep.asset_key, dep.column_name) for dep in sources)):
                    schema = specs[there].metadata["dagster/column_schema"]
                    assert column in {entry.name for entry in schema.columns}
            seen += 1
    assert seen >= 5
