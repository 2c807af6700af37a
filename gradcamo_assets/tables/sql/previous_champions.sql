WITH held AS (
    SELECT model_name, promoted_at, 1 AS later, to_run AS previous_run, to_version AS previous_version
    FROM lake.promotions WHERE alias = 'champion'
    UNION ALL
    SELECT model_name, promoted_at, 0, from_run, from_version
    FROM lake.promotions WHERE alias = 'champion'
)
SELECT DISTINCT ON (model_name) model_name, model_version, model_run, previous_run, previous_version
FROM held JOIN champions USING (model_name) WHERE previous_run <> model_run
ORDER BY model_name, held.promoted_at DESC, later DESC, previous_version DESC
