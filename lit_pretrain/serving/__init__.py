"""What is inside a registered model: a checkpoint that answers tables of texts or pictures as `predict` does."""
