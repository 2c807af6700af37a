SELECT
    model_name, model_version, model_run, Metadata_Plate, Metadata_Compound, Metadata_Dose, Metadata_Dose_Unit,
    place, Metadata_CellID, crop_index, looks_at, gradcamo, gradcamo_adjusted
FROM aggregates.worst_cells JOIN champions USING (model_run)
