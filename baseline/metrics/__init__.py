"""The metrics that a run is selected and judged by: one definition of each, for training, evaluation and reports."""
