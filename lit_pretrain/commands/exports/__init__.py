"""What `export` writes: one file a format, with the check that loads it in the other library, and the model card."""
