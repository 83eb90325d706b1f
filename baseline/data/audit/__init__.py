"""Audit of an image table: scan every image, find duplicates and report findings."""
