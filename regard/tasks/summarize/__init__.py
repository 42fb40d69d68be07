"""Summarization: a document becomes a few words, some of them copied from it."""
