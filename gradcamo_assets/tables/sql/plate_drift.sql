WITH controls AS (
    SELECT model_name, model_version, model_run, Metadata_Plate, median(median_adjusted) AS control_adjusted
    FROM qc_by_well JOIN wells USING (Metadata_Plate, Metadata_Well)
    WHERE Metadata_pert_type = 'negcon' GROUP BY ALL
), compared AS (
    SELECT *, count(*) OVER earlier AS earlier_plates,
        median(on_target_fraction) OVER earlier AS on_target_before,
        mad(on_target_fraction) OVER earlier AS on_target_spread,
        median(median_adjusted) OVER earlier AS adjusted_before,
        mad(median_adjusted) OVER earlier AS adjusted_spread,
        median(control_adjusted) OVER earlier AS control_before,
        mad(control_adjusted) OVER earlier AS control_spread
    FROM qc_by_plate
    LEFT JOIN controls USING (model_name, model_version, model_run, Metadata_Plate)
    LEFT JOIN plates USING (Metadata_Plate)
    WINDOW earlier AS (
        PARTITION BY model_run ORDER BY ingested_at, Metadata_Plate
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), judged AS (
    SELECT *,
        aggregates.robust_deviation(on_target_fraction, on_target_before, on_target_spread) AS on_target_deviation,
        aggregates.robust_deviation(median_adjusted, adjusted_before, adjusted_spread) AS adjusted_deviation,
        aggregates.robust_deviation(control_adjusted, control_before, control_spread) AS control_deviation
    FROM compared
)
SELECT
    model_name, model_version, model_run, ingested_at, Metadata_Plate, earlier_plates,
    on_target_fraction, on_target_before, on_target_deviation,
    median_adjusted, adjusted_before, adjusted_deviation,
    control_adjusted, control_before, control_deviation,
    CASE
        WHEN earlier_plates < $earlier_plates THEN 'too few earlier plates'
        WHEN greatest(abs(on_target_deviation), abs(adjusted_deviation), abs(control_deviation)) > $far_plate
            THEN 'differs'
        ELSE 'as before'
    END AS verdict
FROM judged
