SELECT scores.* REPLACE (labels.model_name AS model_name, labels.model_version AS model_version)
FROM lake.scores JOIN aggregates.labels USING (model_run)
WHERE is_champion
