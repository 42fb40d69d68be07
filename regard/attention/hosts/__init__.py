"""Observation of models as they stand: regard's own, torch's, transformers' and anything that calls torch's attention.

`observe` is the front door (`regard.observe`). Each host has a file that knows how its attention calls look and lowers
them to `PairScores`; none of them changes what the model computes.
"""
