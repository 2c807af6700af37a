WITH compared AS (
    SELECT *, n_cells - null_cells AS n_scored, median(median_adjusted) OVER plate AS plate_adjusted,
        mad(median_adjusted) OVER plate AS spread
    FROM qc_by_well JOIN champions USING (model_name, model_version, model_run)
    WINDOW plate AS (PARTITION BY model_name, model_version, model_run, Metadata_Plate)
), judged AS (
    SELECT *, aggregates.robust_deviation(median_adjusted, plate_adjusted, spread) AS deviation,
        CASE
            WHEN n_scored < $fewest_cells THEN 'fewer than $fewest_cells cells with a score'
            WHEN median_adjusted < $at_chance THEN 'no better than chance'
            WHEN deviation < -$far_well THEN 'far below its plate'
        END AS reason
    FROM compared
)
SELECT
    model_name, model_version, model_run, Metadata_Plate, Metadata_Well,
    Metadata_Compound, Metadata_Dose, Metadata_Dose_Unit, n_scored,
    median_adjusted, plate_adjusted, deviation, reason
FROM judged LEFT JOIN wells USING (Metadata_Plate, Metadata_Well) WHERE reason IS NOT NULL
