"""Metrics, baselines and the table."""
