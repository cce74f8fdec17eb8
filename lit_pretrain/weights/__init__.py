"""Public checkpoints in and out, one file a format."""
