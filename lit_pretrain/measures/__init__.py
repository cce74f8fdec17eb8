"""Pure functions on features and labels: neighbours, probes, ranks, intervals, and whether a space is used."""
