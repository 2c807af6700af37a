WITH judged AS (
    SELECT
        model_run, count(*) AS n_plates, sum(n_cells)::BIGINT AS n_cells, sum(null_cells)::BIGINT AS null_cells,
        sum(right_test) / nullif(sum(judged_test), 0) AS accuracy_test,
        sum(right_unseen) / nullif(sum(judged_unseen), 0) AS accuracy_unseen,
        sum(on_target) / nullif(sum(placed), 0) AS on_target_fraction,
        sum(looks_at_target) / nullif(sum(looked), 0) AS looks_at_target,
        sum(looks_at_neighbour) / nullif(sum(looked), 0) AS looks_at_neighbour,
        sum(looks_at_background) / nullif(sum(looked), 0) AS looks_at_background,
        sum(looks_at_none) / nullif(sum(looked), 0) AS looks_at_none
    FROM aggregates.totals GROUP BY ALL
), bins AS (
    -- Find the bin of width 0.001 that contains the median first: few values are left to sort.
    SELECT model_run, measure, floor(1000 * value) AS bin, sum(n) AS n FROM aggregates.score_values GROUP BY ALL
), ranked_bins AS (
    SELECT *, sum(n) OVER (PARTITION BY model_run, measure ORDER BY bin) AS up_to,
        sum(n) OVER (PARTITION BY model_run, measure) AS total
    FROM bins
), ranked AS (
    SELECT model_run, measure, value, total,
        up_to - bins.n + sum(found.n) OVER (PARTITION BY model_run, measure, bin ORDER BY value) AS up_to
    FROM aggregates.score_values AS found JOIN ranked_bins AS bins USING (model_run, measure)
    WHERE bin = floor(1000 * value) AND up_to >= (total + 1) // 2 AND up_to - bins.n <= total // 2
), middle AS (
    SELECT model_run, measure,
        (min(value) FILTER (up_to >= (total + 1) // 2) + min(value) FILTER (up_to >= total // 2 + 1)) / 2 AS value
    FROM ranked GROUP BY ALL
), medians AS (
    SELECT model_run, any_value(value) FILTER (measure = 'gradcamo') AS median_gradcamo,
        any_value(value) FILTER (measure = 'gradcamo_adjusted') AS median_adjusted
    FROM middle GROUP BY ALL
), audited AS (
    SELECT model_run, avg(trusted::INTEGER) AS trusted_fraction
    FROM audited_cells WHERE split <> 'train' GROUP BY ALL
)
SELECT
    model_name, model_version, model_run,
    (model_name, model_version) IN (SELECT (model_name, model_version) FROM champions) AS is_champion,
    architecture, layer, objective, swap, regulariser,
    coalesce(n_plates, 0) AS n_plates, coalesce(n_cells, 0) AS n_cells,
    accuracy_test, accuracy_unseen, median_gradcamo, median_adjusted, on_target_fraction,
    looks_at_target, looks_at_neighbour, looks_at_background, looks_at_none, coalesce(null_cells, 0) AS null_cells,
    trusted_fraction
FROM models LEFT JOIN judged USING (model_run) LEFT JOIN medians USING (model_run)
LEFT JOIN audited USING (model_run)
