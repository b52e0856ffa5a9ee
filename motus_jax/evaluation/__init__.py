"""Metrics, baselines, intervals and the report page."""
