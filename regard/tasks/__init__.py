"""What a job is: its recipe, its data, its metric, its demo corpus and its results."""
