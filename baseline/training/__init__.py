"""Training: stages, callbacks, checkpoints, cached features, budgets and loggers."""
