"""Process the fields of a plate x site one by one; errors of single fields are recorded and do not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import dagster as dg

from gradcamo_assets.defs.settings import read_settings
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.local_copies import temporary_copies
from gradcamo_assets.plates import Field, Plate, load_plate

_LOG_INTERVAL_SECONDS = 30.0
T = TypeVar("T")


def as_number(value: object) -> float:
    """Convert a polars aggregate to a float for Dagster metadata; 0 if it is null."""
    return float(value) if isinstance(value, int | float) else 0.0


def markdown_list(texts: Iterable[str]) -> str:
    """Format texts as a markdown list."""
    return "\n".join(f"- {text}" for text in texts) or "none"


def markdown_reasons(reasons: Mapping[str, str]) -> str:
    """Format the reasons by well (or another name) as a markdown list."""
    return markdown_list(f"{well}: {reason}" for well, reason in sorted(reasons.items()))


@dataclass
class Outcome(Generic[T]):
    """Results and failure reasons of the fields of one partition, by well."""

    done: dict[str, T] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def check_result(self, name: str) -> dg.AssetCheckResult:
        """The result of a non-blocking check that passes if no field failed."""
        return dg.AssetCheckResult(
            check_name=name,
            passed=not self.failed,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={"failed_fields": len(self.failed), "reasons": dg.MetadataValue.md(markdown_reasons(self.failed))},
        )


def load_site_fields(home: Home, plate_name: str, site: int) -> tuple[Plate, list[Field]]:
    """Load the plate and its readable fields at one site.

    Raises:
        dg.Failure: if the plate has no readable field at the site.
    """
    plate = load_plate(home.plates, plate_name, illumination=read_settings(home).plates.illumination)
    fields = [item for item in plate.fields if item.site == site]
    if not fields:
        sites = sorted({item.site for item in plate.fields})
        raise dg.Failure(f"Plate {plate_name} has no readable field at site {site}; it has sites {sites}.")
    return plate, fields


def field_row(plate: str, well: str, site: int, **values: Any) -> dict[str, Any]:
    """A row of a table with one row per field."""
    return {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site, **values}


def process_fields_of_site(
    context: dg.AssetExecutionContext, fields: Iterable[Field], work: Callable[[Field], T]
) -> Outcome[T]:
    """Call ``work`` on each field, log the progress, and continue after errors of single fields.

    Raises:
        dg.Failure: if all fields failed.
    """
    fields = list(fields)
    outcome: Outcome[T] = Outcome()
    durations: list[float] = []
    logged_at = started_at = time.monotonic()
    for count, item in enumerate(fields, start=1):
        try:
            with temporary_copies():
                outcome.done[item.well] = work(item)
        except GradcamoError as error:
            outcome.failed[item.well] = str(error)
            context.log.error(f"{item.plate} {item.well} site {item.site}: {error}")
        now = time.monotonic()
        durations.append(now - started_at)
        started_at = now
        if now - logged_at >= _LOG_INTERVAL_SECONDS or count == len(fields):
            context.log.info(format_progress(item.well, count, len(fields), durations))
            logged_at = now
    if fields and not outcome.done:
        raise dg.Failure("No field of this partition could be processed:\n" + "\n".join(outcome.failed.values()))
    return outcome


def format_progress(well: str, done: int, total: int, durations: list[float]) -> str:
    """Format the progress, such as ``B03 done, 12 of 384, 41 s per field, about 4 h left``.

    Args:
        durations: seconds per field. Fields that took less than a twentieth of the slowest of the last hundred were
            already done and do not count for the estimate.
    """
    recent = durations[-100:]
    computed = [seconds for seconds in recent if seconds * 20 >= max(recent)][-20:]
    mean = sum(computed) / len(computed)
    remaining = mean * (total - done)
    if remaining >= 5400:
        estimate = f"about {remaining / 3600:.0f} h left"
    elif remaining >= 90:
        estimate = f"about {remaining / 60:.0f} min left"
    else:
        estimate = f"about {remaining:.0f} s left"
    return f"{well} done, {done} of {total}, {mean:.3g} s per field" + (f", {estimate}" if done < total else "")
