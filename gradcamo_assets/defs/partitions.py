"""The two dynamic dimensions, plates and sites. Which pairs exist is asked of the plates, not of the cross product."""

from __future__ import annotations

import dagster as dg

PLATES = dg.DynamicPartitionsDefinition(name="plates")
SITES = dg.DynamicPartitionsDefinition(name="sites")
AUTOMATIC = dg.AutomationCondition.eager().without(
    ~dg.AutomationCondition.any_deps_missing()
) & dg.AutomationCondition.any_deps_match(~dg.AutomationCondition.missing())
"""Made when what it is made from has changed. Plain ``eager`` would wait for plate x site pairs that no plate has; and
without its own condition it would make a new plate's partition from nothing."""
PLATE_SITES = dg.MultiPartitionsDefinition({"plate": PLATES, "site": SITES})


def plate_site_key(plate: str, site: int) -> dg.MultiPartitionKey:
    """The partition key of one plate and site."""
    return dg.MultiPartitionKey({"plate": plate, "site": str(site)})


def plate_site_of(context: dg.AssetExecutionContext) -> tuple[str, int]:
    """Plate and site of the partition a run is for."""
    key = context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        raise TypeError(f"{key!r} is no plate x site partition")
    return key.keys_by_dimension["plate"], int(key.keys_by_dimension["site"])
