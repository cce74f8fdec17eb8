"""fit, validate, test, predict: the command line of trainings, what a wrong config is told, data from settings."""
