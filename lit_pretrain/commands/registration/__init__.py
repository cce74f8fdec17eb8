"""A checkpoint's way into MLflow's registry: what it answers, the model's files, the registered version."""
