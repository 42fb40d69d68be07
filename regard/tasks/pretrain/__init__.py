"""Pre-training: an encoder learns from bare text, for another task to begin with."""
