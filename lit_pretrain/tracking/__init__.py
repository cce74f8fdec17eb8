"""The memory of the suite: the MLflow logger, what it records of a run, and how runs are found again.

Nothing heavy is imported here, so that commands which only look for runs start at once.
"""
