"""Experiments that consist of several runs: seeds, folds, ladders, learning curves, label fixes and label review."""
