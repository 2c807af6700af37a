SELECT
    scores.*,
    audit.* EXCLUDE (
        Metadata_Plate, Metadata_Well, Metadata_Site, Metadata_CellID, Metadata_Compound, Metadata_Dose,
        Metadata_Dose_Unit, Metadata_Dose_Rank, Metadata_pert_type, model_name, model_version, model_run, crop_version
    ),
    coalesce(looks_at = 'target', false) AND survives_swap AS trusted,
    CASE WHEN looks_at = 'target' THEN swap_margin ELSE least(swap_margin, 0) END AS trust,
    regulariser <> 'none' AS trained_for_score
FROM lake.audit
JOIN aggregates.labelled_audited_scores AS scores USING (Metadata_Plate, Metadata_CellID, model_run)
LEFT JOIN models
    ON models.model_name = scores.model_name
    AND models.model_version = scores.model_version
    AND models.model_run = scores.model_run
