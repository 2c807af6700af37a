"""Doing one thing to every field of a plate x site: a bad field is named and left, the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import dagster as dg

from gradcamo_assets.defs.settings import read_settings
from gradcamo_assets.errors import GradcamoError
from gradcamo_assets.home import Home
from gradcamo_assets.plates import Field, Plate, load_plate

_EVERY_SECONDS = 30.0
T = TypeVar("T")


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
class Outcome(Generic[T]):
    """What became of the fields of one partition: results and reasons by well."""

    done: dict[str, T] = field(default_factory=dict)
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


def field_row(plate: str, well: str, site: int, **values: Any) -> dict[str, Any]:
    """A row of a table with a row a field."""
    return {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site, **values}


def for_each_field(
    context: dg.AssetExecutionContext, fields: Iterable[Field], work: Callable[[Field], T]
) -> Outcome[T]:
    """Call ``work`` on each field, log progress with the time left, and keep going where one fails.

    Raises:
        dg.Failure: if every field failed.
    """
    fields = list(fields)
    outcome: Outcome[T] = Outcome()
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
