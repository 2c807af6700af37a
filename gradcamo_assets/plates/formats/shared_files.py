"""Find image files that an export names for more than one channel or field."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

_FILE, _FIELD = ["file", "page"], ["well", "site"]


def find_shared_files(planes: pl.DataFrame, names: Sequence[str]) -> tuple[dict[tuple[str, int], str], list[str]]:
    """The fields that have a plane in common with another channel or field, and notes.

    A table with a wrong row names a file twice in a few fields: which channel or field it shows is unknown, so these
    fields are bad. If channels share their files in every field, two names were given to one channel on purpose or by
    the table as a whole, and a note says so. The same holds if every field shares its planes with another field.

    Args:
        planes: as ``Export.planes``.
        names: of the channels.

    Returns:
        By field (well, site), which file it shares with what; and the notes.
    """
    shared = planes.filter(pl.struct(_FILE).is_duplicated())
    in_field = shared.group_by(*_FIELD, *_FILE).agg(pl.col("channel").unique().sort())
    fields_of: dict[tuple[int, ...], dict[tuple[str, int], str]] = {}
    for well, site, file, channels in in_field.select(*_FIELD, "file", "channel").sort(*_FIELD, "file").iter_rows():
        if len(channels) > 1:
            fields_of.setdefault(tuple(channels), {})[well, site] = file
    reasons: dict[tuple[str, int], str] = {}
    notes: list[str] = []
    for channels, files in fields_of.items():
        labels = " and ".join(names[channel] for channel in channels)
        if len(files) == planes.filter(pl.col("channel").is_in(channels)).select(_FIELD).n_unique():
            notes.append(f"{labels} name the same files in every field, for example {min(files.values())}")
        else:
            reasons |= {field: f"{labels} name the same file, {file}" for field, file in files.items()}
    groups = shared.group_by(_FILE).agg(field=pl.struct(_FIELD).unique().sort()).filter(pl.col("field").list.len() > 1)
    between = groups.explode("field").unnest("field").sort(*_FIELD, *_FILE)
    examples = {
        file: (first, second)
        for file, first, second in groups.select(
            "file", pl.col("field").list.get(0), pl.col("field").list.get(1).alias("other")
        ).iter_rows()
    }
    if between.height and between.select(_FIELD).n_unique() == planes.select(_FIELD).n_unique():
        file = between["file"][0]
        where = " and ".join("{well} site {site}".format(**field) for field in examples[file])
        notes.append(f"every field names a file of another field, for example {where} name {file}")
        return reasons, notes
    for well, site, file in between.select(*_FIELD, "file").iter_rows():
        first, second = examples[file]
        other = second if first == {"well": well, "site": site} else first
        reasons.setdefault((well, site), "{well} site {site} names the same file, ".format(**other) + file)
    return reasons, notes
