WITH ranked AS (
    SELECT *,
        rank() OVER (plate_model ORDER BY gradcamo_adjusted) + count(*) OVER (same_score) / 2 AS score_rank,
        rank() OVER (plate_model ORDER BY effect_target) + count(*) OVER (same_effect) / 2 AS effect_rank
    FROM audited_cells
    WHERE split <> 'train' AND gradcamo_adjusted IS NOT NULL AND effect_target IS NOT NULL
    WINDOW plate_model AS (PARTITION BY Metadata_Plate, model_run),
        same_score AS (PARTITION BY Metadata_Plate, model_run, gradcamo_adjusted),
        same_effect AS (PARTITION BY Metadata_Plate, model_run, effect_target)
), agreement AS (
    SELECT Metadata_Plate, model_run, corr(score_rank, effect_rank) AS score_effect_correlation
    FROM ranked GROUP BY ALL
)
SELECT
    Metadata_Plate, model_name, model_version, model_run, count(*) AS n_cells,
    median(logit_drop_target) AS logit_drop_target,
    median(logit_drop_neighbour) AS logit_drop_neighbour,
    median(logit_drop_background) AS logit_drop_background,
    median(effect_target) AS effect_target,
    any_value(score_effect_correlation) AS score_effect_correlation,
    median(deletion_auc) AS deletion_auc, median(insertion_auc) AS insertion_auc,
    median(randomised_adjusted) AS randomised_adjusted, median(randomised_chance) AS randomised_chance,
    median(probability_drop_swapped_surroundings) AS probability_drop_swapped_surroundings,
    median(probability_drop_swapped_target) AS probability_drop_swapped_target,
    median(probability_drop_background_only) AS probability_drop_background_only,
    avg(survives_swap::INTEGER) AS survives_swap, avg(trusted::INTEGER) AS trusted,
    any_value(trained_for_score) AS trained_for_score, any_value(designs.one_treatment_per_well) AS one_treatment_per_well,
    if(any_value(designs.one_treatment_per_well), $swap_one_treatment, $swap) AS swap_threshold,
    CASE
        WHEN count(survives_swap) < $fewest_audited THEN 'not audited'
        WHEN avg(survives_swap::INTEGER) < swap_threshold THEN 'fails the swap'
        ELSE 'survives the swap'
    END AS verdict
FROM audited_cells
LEFT JOIN agreement USING (Metadata_Plate, model_run)
LEFT JOIN aggregates.plate_designs AS designs USING (model_run, Metadata_Plate)
WHERE split <> 'train'
GROUP BY ALL
