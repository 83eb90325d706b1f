"""Experiments of several runs: seeds, folds, comparisons, ladders, learning curves, label fixes and label review."""
