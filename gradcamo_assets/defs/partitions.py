"""The dynamic partitions by plate and site, and the automation condition of assets made from them.

Not every plate x site pair exists. The lake's version tables list those that do.
"""

from __future__ import annotations

import dagster as dg

PLATES = dg.DynamicPartitionsDefinition(name="plates")
SITES = dg.DynamicPartitionsDefinition(name="sites")
AFTER_FAILURE = (
    dg.AutomationCondition.execution_failed()
    & dg.AutomationCondition.cron_tick_passed("0 */6 * * *")
    & ~dg.AutomationCondition.in_progress()
)
"""Repeat failed materialisations every six hours."""
ON_INPUT_CHANGE = (
    dg.AutomationCondition.eager().without(~dg.AutomationCondition.any_deps_missing())
    & dg.AutomationCondition.any_deps_match(~dg.AutomationCondition.missing())
) | AFTER_FAILURE
"""Materialise when inputs have changed, and after a failure.

Plain ``eager`` would wait for plate x site pairs that do not exist. Without the second condition, a new plate's
partition would be requested before any of its inputs exist.
"""
PLATE_SITES = dg.MultiPartitionsDefinition({"plate": PLATES, "site": SITES})


def plate_site_key(plate: str, site: int) -> dg.MultiPartitionKey:
    """The partition key of one plate and site."""
    return dg.MultiPartitionKey({"plate": plate, "site": str(site)})


def plate_site_of(context: dg.AssetExecutionContext) -> tuple[str, int]:
    """The plate and site of the run's partition."""
    key = context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        raise TypeError(f"expected a plate x site partition key, got {key!r}")
    return key.keys_by_dimension["plate"], int(key.keys_by_dimension["site"])
