"""Metrics beyond accuracy, for where they are installed: of the probabilities, by class, and the one a recipe names."""
