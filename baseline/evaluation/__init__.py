"""Predict on held-out images and measure the predictions: metrics, intervals, calibration and significance."""
