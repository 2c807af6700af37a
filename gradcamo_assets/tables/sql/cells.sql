SELECT
    cells.* EXCLUDE (qc_flag, qc_warning, mask_version, treatment_class),
    if(coalesce(cells.qc_flag, crops.qc_flag) IS NULL, crops.crop_index, NULL) AS crop_index,
    coalesce(cells.qc_flag, crops.qc_flag) AS qc_flag,
    cells.qc_warning,
    cells.mask_version,
    if(coalesce(cells.qc_flag, crops.qc_flag) IS NULL, crops.crop_version, NULL) AS crop_version,
    cells.treatment_class
FROM lake.cells
LEFT JOIN lake.crops
    ON cells.Metadata_Plate = crops.Metadata_Plate
    AND cells.Metadata_Site = crops.Metadata_Site
    AND cells.Metadata_CellID = crops.Metadata_CellID
    AND cells.mask_version = crops.mask_version
