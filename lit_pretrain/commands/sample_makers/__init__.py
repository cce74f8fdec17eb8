"""What makes each bundled sample from the packages that it comes from; `samples.py` is the command."""
