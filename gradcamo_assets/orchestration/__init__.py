"""The only room that knows Dagster: assets, partitions, resources, checks, jobs, schedules, sensors, and the demo.

An asset body reads as: load, call, save, report. Science lives on the floors below.
"""
