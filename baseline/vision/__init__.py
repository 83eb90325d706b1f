"""Images as batches, pretrained networks, and everything that makes training on them fast."""
