"""What is still to be scored: what has crops, less what the champion has scored for these very crops."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Partition = tuple[str, int]
"""A plate and a site."""


def partitions_to_score(
    crops: Mapping[Partition, Collection[str]],
    scored: Mapping[Partition, Collection[str]],
    refused: Collection[Partition] = (),
) -> list[Partition]:
    """Plate x site partitions the champion has yet to score, sorted.

    New plates, promotions, rollbacks and new masks are all the same case: the crop versions that are stored differ from
    those the champion's rows were made from.

    Args:
        crops: crop versions stored, by partition; a partition without kept cells has none and needs nothing.
        scored: crop versions the champion's rows were made from, by partition.
        refused: partitions the champion does not fit.
    """
    return sorted(
        partition
        for partition, versions in crops.items()
        if versions and partition not in refused and set(versions) != set(scored.get(partition, ()))
    )
