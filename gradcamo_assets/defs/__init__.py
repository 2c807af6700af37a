"""Dagster definitions: assets, partitions, resources, checks, jobs, schedules, sensors and the demo.

No other package imports Dagster. Assets load inputs, call other packages, and store and report the results.
"""
