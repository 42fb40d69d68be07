"""Weights of other programs' checkpoints under regard's names: a file an architecture."""
