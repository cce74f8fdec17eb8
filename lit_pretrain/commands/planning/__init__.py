"""Plans of trainings: a probe of a minute, and what it says of the whole."""
