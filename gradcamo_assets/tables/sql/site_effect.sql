SELECT
    model_name, model_version, model_run, Metadata_Plate, Metadata_Site,
    n_cells, on_target_fraction, median_adjusted, difference, wells_up, wells_down,
    aggregates.sign_test(wells_up, wells_down, 'higher', 'lower') AS verdict
FROM aggregates.site_differences
JOIN qc_by_site USING (model_run, Metadata_Plate, Metadata_Site)
JOIN champions USING (model_name, model_version, model_run)
