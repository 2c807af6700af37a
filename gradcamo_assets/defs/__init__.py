"""The only package that imports Dagster: assets, partitions, resources, checks, jobs, schedules, sensors, the demo.

An asset body loads, calls, saves and reports. The science is in the packages below.
"""
