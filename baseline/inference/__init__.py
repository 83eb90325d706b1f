"""Use trained models: load and check them, predict images one at a time or in bulk, and filter images by a model."""

DEFAULT_TTA = True
"""Whether commands, Python functions and the server use test-time augmentation (TTA) if they are not told otherwise."""
