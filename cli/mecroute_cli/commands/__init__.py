"""One module per noun or verb; heavy imports stay inside the functions."""
