"""Schedules, sensors and jobs, and the comparisons that tell them what is to be done."""
