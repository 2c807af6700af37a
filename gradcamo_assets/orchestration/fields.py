"""Doing one thing to every field of a plate x site: a bad field is named and left, the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import dagster as dg
import polars as pl

from gradcamo_assets.common import GradcamoError, Home
from gradcamo_assets.plates import Field, IngestConfig, Plate, load_plate
from gradcamo_assets.warehouse import Lake


def number(value: object) -> float:
    """A polars aggregate as a number that Dagster can plot; 0 where there was nothing to aggregate."""
    return float(value) if isinstance(value, int | float) else 0.0


@dataclass
class Outcome:
    """What became of the fields of one partition: results and reasons by well."""

    done: dict[str, object] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def check(self, name: str) -> dg.AssetCheckResult:
        """A check that fails, without blocking, where a field did."""
        listing = "\n".join(f"- {well}: {reason}" for well, reason in sorted(self.failed.items()))
        return dg.AssetCheckResult(
            check_name=name,
            passed=not self.failed,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={"failed_fields": len(self.failed), "reasons": dg.MetadataValue.md(listing or "none")},
        )


def fields_at(home: Home, plate_name: str, site: int) -> tuple[Plate, list[Field]]:
    """The plate and its readable fields at one site.

    Raises:
        dg.Failure: if the plate has no such site; the partition should never have been asked for.
    """
    settings = home.settings("plates", IngestConfig)
    plate = load_plate(home.plates, plate_name, illumination=settings.illumination)
    fields = [item for item in plate.fields if item.site == site]
    if not fields:
        sites = sorted({item.site for item in plate.fields})
        raise dg.Failure(f"Plate {plate_name} has no readable field at site {site}; it has sites {sites}.")
    return plate, fields


def for_each_field(
    context: dg.AssetExecutionContext, fields: Iterable[Field], work: Callable[[Field], object]
) -> Outcome:
    """Call ``work`` on each field, log progress, and keep going where one fails.

    Raises:
        dg.Failure: if every field failed.
    """
    fields = list(fields)
    outcome = Outcome()
    for number, item in enumerate(fields, start=1):
        try:
            outcome.done[item.well] = work(item)
        except GradcamoError as error:
            outcome.failed[item.well] = str(error)
            context.log.error(f"{item.plate} {item.well} site {item.site}: {error}")
        else:
            context.log.debug(f"{item.plate} {item.well} site {item.site}: {number} of {len(fields)} fields done")
    if fields and not outcome.done:
        raise dg.Failure("No field of this partition could be processed:\n" + "\n".join(outcome.failed.values()))
    return outcome


def flag_fields(lake: Lake, plate: str, site: int, stage: str, failed: dict[str, str]) -> None:
    """Write into the ``fields`` table which wells failed at a stage, and clear that stage's flag from the others."""
    prefix = f"{stage}: "
    rows = lake.read("fields", plate=plate, site=site)
    reasons = pl.DataFrame(
        {"Metadata_Well": list(failed), "reason": [prefix + reason for reason in failed.values()]},
        schema={"Metadata_Well": pl.String, "reason": pl.String},
    )
    flag = pl.col("qc_flag")
    rows = rows.join(reasons, on="Metadata_Well", how="left").with_columns(
        qc_flag=pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(flag.str.starts_with(prefix))
        .then(None)
        .otherwise(flag)
    )
    lake.write("fields", rows.drop("reason"), plate=plate, site=site)
