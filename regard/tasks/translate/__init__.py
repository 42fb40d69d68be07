"""Translation: text in one language in, text in another out."""
