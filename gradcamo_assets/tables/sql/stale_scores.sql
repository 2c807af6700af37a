SELECT
    crop_versions.Metadata_Plate, crop_versions.Metadata_Site, labels.model_name, labels.model_version,
    labels.model_run, crop_versions.n AS n_cells,
    coalesce(
        unscored.reason, if(score_versions.made_from IS NULL, 'never scored by the champion', 'crops changed')
    ) AS reason
FROM lake.crop_versions JOIN aggregates.labels ON is_champion
LEFT JOIN lake.score_versions USING (Metadata_Plate, Metadata_Site, model_run)
LEFT JOIN lake.unscored USING (Metadata_Plate, Metadata_Site, model_run)
WHERE score_versions.made_from IS DISTINCT FROM crop_versions.version
    AND (crop_versions.n > 0 OR score_versions.n > 0)
