"""What pretrained features are worth, without training the encoder: neighbours and linear probes."""
