"""Greedy search, beam search and sampling; decoders are known by their protocol alone."""
