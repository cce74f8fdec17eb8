"""Public checkpoints in and out, one file a format: settings and tensors, without the modules that hold them."""
