WITH audited AS (
    SELECT model_name, model_version, model_run, Metadata_Plate, avg(survives_swap::INTEGER) AS survives_swap
    FROM audit GROUP BY ALL
)
SELECT
    model_name, model_version, model_run, Metadata_Plate, Metadata_Compound, Metadata_Dose, Metadata_Dose_Unit,
    n_cells, n_wells, median_adjusted, on_target_fraction, ci_low, ci_high,
    CASE
        WHEN ci_low IS NULL THEN 'too few wells'
        WHEN ci_high < 0.5 THEN 'not trusted'
        WHEN ci_low <= 0.5 THEN 'undecided'
        WHEN survives_swap <= 0.5 THEN 'fails the swap'
        WHEN survives_swap IS NULL AND regulariser <> 'none' THEN 'trained for'
        ELSE 'trusted'
    END AS verdict
FROM qc_by_dose
JOIN champions USING (model_name, model_version, model_run)
LEFT JOIN models USING (model_name, model_version, model_run)
LEFT JOIN audited USING (model_name, model_version, model_run, Metadata_Plate)
