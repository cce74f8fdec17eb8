"""Fine-tuning of an encoder to a task: tasks, heads, modalities, predictions."""
