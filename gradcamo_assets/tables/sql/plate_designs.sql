SELECT model_run, Metadata_Plate, sum(doses.n_wells) = any_value(plates.n_wells) AS one_treatment_per_well
FROM aggregates.qc_by_dose AS doses JOIN aggregates.qc_by_plate AS plates USING (model_run, Metadata_Plate)
GROUP BY ALL
