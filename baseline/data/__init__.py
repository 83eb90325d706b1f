"""Images and labels: read a source into the image table, audit it, fix its labels and split it."""
