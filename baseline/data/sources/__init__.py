"""Readers of image sources: folders, tables, archives, named datasets and external libraries."""
