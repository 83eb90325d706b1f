"""A web page and an HTTP API that serve predictions of a trained model."""
