"""A step of a training that is over, made again: its batch, what the encoders were shown, and who caused its loss."""
