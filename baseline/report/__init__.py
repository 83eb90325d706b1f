"""Reports of a run: the HTML page, its figures, the model card and the page for reviewing labels."""
