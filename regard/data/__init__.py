"""Corpora: readers, the memory-mapped prepared corpus, token-budget batching and the exact position in the stream."""
