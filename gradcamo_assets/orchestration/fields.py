"""Doing one thing to every field of a plate x site: a bad field is named and left, the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import dagster as dg
import polars as pl

from gradcamo_assets.common import GradcamoError, Home
from gradcamo_assets.orchestration.settings import read_settings
from gradcamo_assets.plates import Field, Plate, load_plate
from gradcamo_assets.warehouse import Lake, lake_table

_EVERY_SECONDS = 30.0
_MASKS = "masks: "


def number(value: object) -> float:
    """A polars aggregate as a number that Dagster can plot; 0 where there was nothing to aggregate."""
    return float(value) if isinstance(value, int | float) else 0.0


def bullets(texts: Iterable[str]) -> str:
    """Texts as a markdown list."""
    return "\n".join(f"- {text}" for text in texts) or "none"


def listing(reasons: Mapping[str, str]) -> str:
    """Wells and what is said of each, as markdown."""
    return bullets(f"{well}: {reason}" for well, reason in sorted(reasons.items()))


@dataclass
class Outcome:
    """What became of the fields of one partition: results and reasons by well."""

    done: dict[str, object] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def check(self, name: str) -> dg.AssetCheckResult:
        """A check that fails, without blocking, where a field did."""
        return dg.AssetCheckResult(
            check_name=name,
            passed=not self.failed,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={"failed_fields": len(self.failed), "reasons": dg.MetadataValue.md(listing(self.failed))},
        )


def fields_at(home: Home, plate_name: str, site: int) -> tuple[Plate, list[Field]]:
    """The plate and its readable fields at one site.

    Raises:
        dg.Failure: if the plate has no such site; the partition should never have been asked for.
    """
    plate = load_plate(home.plates, plate_name, illumination=read_settings(home).plates.illumination)
    fields = [item for item in plate.fields if item.site == site]
    if not fields:
        sites = sorted({item.site for item in plate.fields})
        raise dg.Failure(f"Plate {plate_name} has no readable field at site {site}; it has sites {sites}.")
    return plate, fields


def for_each_field(
    context: dg.AssetExecutionContext, fields: Iterable[Field], work: Callable[[Field], object]
) -> Outcome:
    """Call ``work`` on each field, log progress with the time left, and keep going where one fails.

    Raises:
        dg.Failure: if every field failed.
    """
    fields = list(fields)
    outcome = Outcome()
    took: list[float] = []
    told = begun = time.monotonic()
    for count, item in enumerate(fields, start=1):
        try:
            outcome.done[item.well] = work(item)
        except GradcamoError as error:
            outcome.failed[item.well] = str(error)
            context.log.error(f"{item.plate} {item.well} site {item.site}: {error}")
        now = time.monotonic()
        took.append(now - begun)
        begun = now
        if now - told >= _EVERY_SECONDS or count == len(fields):
            context.log.info(progress(item.well, count, len(fields), took))
            told = now
    if fields and not outcome.done:
        raise dg.Failure("No field of this partition could be processed:\n" + "\n".join(outcome.failed.values()))
    return outcome


def progress(well: str, done: int, of: int, took: list[float]) -> str:
    """``B03 done, 12 of 384, 41 s a field, about 4 h left``.

    Args:
        took: seconds that each field took; what went twenty times faster than the slowest of the last hundred was
            there already and tells nothing of those to come.
    """
    worked = [seconds for seconds in took[-100:] if seconds * 20 >= max(took[-100:])]
    each = sum(worked[-20:]) / len(worked[-20:])
    left = each * (of - done)
    if left >= 5400:
        text = f"about {left / 3600:.0f} h left"
    elif left >= 90:
        text = f"about {left / 60:.0f} min left"
    else:
        text = f"about {left:.0f} s left"
    return f"{well} done, {done} of {of}, {each:.3g} s a field" + (f", {text}" if done < of else "")


def measure_fields(
    lake: Lake, plate: str, site: int, measured: Mapping[str, Mapping[str, float]], warnings: Mapping[str, str]
) -> None:
    """Write into the ``fields`` table what the masks tell: numbers by column and well, and warnings by well.

    The warnings about masks that stood there are replaced, those of other stages stay; a well without a number is NULL.
    """
    well, before = pl.col("Metadata_Well"), pl.col("qc_warning").str.split("; ")
    kept = before.list.eval(pl.element().filter(~pl.element().str.starts_with(_MASKS))).list.join("; ")
    mine = pl.format(_MASKS + "{}", well.replace_strict(warnings, default=None, return_dtype=pl.String))
    text = pl.concat_str(pl.when(kept != "").then(kept), mine, separator="; ", ignore_nulls=True)
    types = lake_table("fields").polars
    rows = lake.read("fields", plate=plate, site=site).with_columns(
        pl.when(text != "").then(text).alias("qc_warning"),
        *(
            well.replace_strict(dict(values), default=None, return_dtype=types[name]).alias(name)
            for name, values in measured.items()
        ),
    )
    lake.write("fields", rows, plate=plate, site=site)


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
