WITH judged AS (
    SELECT doses.*, coalesce(regulariser <> 'none', false) AS trained_for_score, designs.one_treatment_per_well,
        if(designs.one_treatment_per_well, $adjusted_one_treatment, $adjusted) AS adjusted_threshold,
        if(designs.one_treatment_per_well, $swap_one_treatment, $swap) AS swap_threshold,
        survives_swap, coalesce(audits.n_cells, 0) AS n_audited, audits.verdict AS swap_verdict
    FROM qc_by_dose AS doses
    JOIN champions USING (model_name, model_version, model_run)
    JOIN aggregates.plate_designs AS designs USING (model_run, Metadata_Plate)
    LEFT JOIN models USING (model_name, model_version, model_run)
    LEFT JOIN audit_by_plate AS audits USING (model_name, model_version, model_run, Metadata_Plate)
)
SELECT
    model_name, model_version, model_run, Metadata_Plate, Metadata_Compound, Metadata_Dose, Metadata_Dose_Unit,
    n_cells, n_wells,
    CASE
        WHEN swap_verdict = 'fails the swap' THEN 'fails the swap'
        WHEN n_wells < $fewest_wells OR (NOT trained_for_score AND adjusted_low IS NULL) THEN 'too few wells'
        WHEN NOT trained_for_score AND adjusted_high < adjusted_threshold THEN 'not trusted'
        WHEN swap_verdict IS DISTINCT FROM 'survives the swap' THEN 'not audited'
        WHEN NOT trained_for_score AND adjusted_low <= adjusted_threshold THEN 'undecided'
        ELSE 'trusted'
    END AS verdict,
    if(trained_for_score, 'swap test', 'adjusted score and swap test') AS rule,
    mean_adjusted, adjusted_low, adjusted_high, adjusted_threshold, survives_swap, n_audited, swap_threshold,
    one_treatment_per_well, trained_for_score, median_adjusted, on_target_fraction, ci_low, ci_high,
    CASE
        WHEN ci_low IS NULL THEN 'too few wells'
        WHEN ci_low > $paper THEN 'trusted'
        WHEN ci_high < $paper THEN 'not trusted'
        ELSE 'undecided'
    END AS paper_verdict
FROM judged
