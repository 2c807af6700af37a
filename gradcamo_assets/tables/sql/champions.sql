SELECT model_name, to_version AS model_version, to_run AS model_run, last_move.promoted_at
FROM (
    SELECT DISTINCT ON (model_name) * FROM lake.promotions WHERE alias = 'champion'
    ORDER BY model_name, promoted_at DESC, to_version DESC NULLS LAST
) AS last_move
SEMI JOIN lake.models
    ON models.model_name = last_move.model_name
    AND models.model_run = to_run
    AND models.model_version = to_version
