"""Use trained models: load and check them, predict images one at a time or in bulk, and filter images by a model."""
