"""Readers of image sources: folders, tables, archives, named data sets and external libraries."""
