"""Number the sites of an export."""

from __future__ import annotations

import re
from collections.abc import Collection

from gradcamo_assets.names import natural_key

_NUMBER = re.compile(r"0*([0-9]{1,8})(\.0*)?")
"""A whole number. Tables that pandas wrote have 1.0 instead of 1 if a row lacks its site."""
_MAX_LISTED = 6


def number_sites(names: Collection[str]) -> tuple[dict[str, int], list[str]]:
    """The number of each site of an export, from 1, and a note if it is not the number that the export gives.

    Numbers are kept. If they begin with 0, all become one higher. Names that are no numbers get the numbers after the
    highest, in natural order.
    """
    numbers = {name: int(match[1]) for name in names if (match := _NUMBER.fullmatch(name))}
    offset = int(0 in numbers.values())
    sites = {name: number + offset for name, number in numbers.items()}
    others = sorted(set(names) - sites.keys(), key=natural_key)
    sites |= {name: site for site, name in enumerate(others, start=max(sites.values(), default=0) + 1)}
    changed = [name for name, site in sites.items() if numbers.get(name) != site]
    if not changed:
        return sites, []
    changed.sort(key=sites.__getitem__)
    listed = ", ".join(f"{name[:60]!r} is site {sites[name]}" for name in changed[:_MAX_LISTED])
    more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
    return sites, [f"sites are numbered from 1, so {listed}{more}"]
