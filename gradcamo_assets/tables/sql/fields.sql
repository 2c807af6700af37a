SELECT
    fields.* EXCLUDE (qc_warning, image_version)
        REPLACE (coalesce(fields.qc_flag, mask_flag, verdict_flag, crop_flag) AS qc_flag),
    n_cells, foreground_share,
    nullif(concat_ws('; ', fields.qc_warning, verdict_warning), '') AS qc_warning
FROM lake.fields
LEFT JOIN aggregates.field_states
    ON fields.Metadata_Plate = field_states.Metadata_Plate
    AND fields.Metadata_Well = field_states.Metadata_Well
    AND fields.Metadata_Site = field_states.Metadata_Site
    -- Ignore the states of fields whose masks were made from other pixels than the current ones.
    AND coalesce(field_states.image_version, '') IN ('', fields.image_version)
