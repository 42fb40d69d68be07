"""Captions: a picture becomes a sentence, and each word knows where the model looked."""
