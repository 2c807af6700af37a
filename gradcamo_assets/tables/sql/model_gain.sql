SELECT
    model_name, model_version, model_run, Metadata_Plate, previous_version, n_cells, n_wells,
    hits_before / n_cells AS on_target_before, hits_now / n_cells AS on_target_now,
    adjusted_before / n_cells AS adjusted_before, adjusted_now / n_cells AS adjusted_now, wells_up, wells_down,
    aggregates.sign_test(
        wells_up, wells_down, if(regulariser <> 'none', 'helped, but trained for', 'helped'), 'harmed'
    ) AS verdict
FROM aggregates.gains
JOIN aggregates.previous_champions USING (model_run, previous_run)
LEFT JOIN models USING (model_name, model_version, model_run)
WHERE n_cells > 0 AND previous_run IN (SELECT model_run FROM models)
