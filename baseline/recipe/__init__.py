"""Recipes: what to train and how, as validated data."""
