"""What is said of runs that have ended or go on: their figures side by side, each one's story, and pages of both.

Everything is read from MLflow's store; nothing here loads torch.
"""
