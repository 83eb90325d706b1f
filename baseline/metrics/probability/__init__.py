"""Metrics that need probabilities."""
