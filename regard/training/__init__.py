"""The training loop and its parts; it is handed the model, the batches and the validation, and knows no task."""
