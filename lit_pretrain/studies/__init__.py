"""Studies: many small trainings planned by one file, run side by side and told as one result."""
