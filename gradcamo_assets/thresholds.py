"""The numbers that decide verdicts: the one place for the SQL views, their comments, the report and the registry.

``tables.columns.read_sql`` puts them into the queries. Those on the adjusted score and the swap test were chosen on
plates with a planted truth, by ``benchmarks/verdicts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of all verdicts.

    Where each well has one treatment, neighbours show the treatment of the cell. An encoder that reads its cell then
    reads them as well, and its adjusted score and its share of surviving cells are lower. Such plates have their own
    thresholds (``..._one_treatment``); the others hold for plates with several treatments per well.

    Attributes:
        adjusted, adjusted_one_treatment: mean adjusted score above which the interval of a dose must lie.
        swap, swap_one_treatment: share of audited cells that must survive the swap test. Encoders that read the
            neighbours keep up to 0.25 on real cells with one treatment per well; of 32 audited cells of an encoder that
            keeps 0.22, at least 0.35 survive in 3% of the samples (binomial distribution).
        fewest_wells: wells of a dose, at least.
        fewest_audited: audited cells of a plate below which the share is not known.
        paper: of Gopalakrishnan et al. 2024: share of the map inside the cell for a cell to be on target, and share of
            cells on target for the ``paper_verdict``.
        at_chance: median adjusted score of a well that is no better than chance.
        fewest_cells: cells with a score below which a well is dropped.
        far_well, far_plate: robust standard deviations by which a well or a plate differs.
        earlier_plates: plates that a plate is compared with, at least.
    """

    adjusted: float = 0.17
    adjusted_one_treatment: float = 0.115
    swap: float = 0.4
    swap_one_treatment: float = 0.35
    fewest_wells: int = 3
    fewest_audited: int = 10
    paper: float = 0.5
    at_chance: float = 0.05
    fewest_cells: int = 5
    far_well: float = 4
    far_plate: float = 4
    earlier_plates: int = 8

    def swap_share(self, one_treatment_per_well: bool) -> float:
        """Share of audited cells of a plate that must survive the swap test."""
        return self.swap_one_treatment if one_treatment_per_well else self.swap


THRESHOLDS = Thresholds()
