"""Step 1, represent: one file a modality, from the raw item to the vectors a model attends to."""
