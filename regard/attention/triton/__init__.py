"""The second pass on a GPU, in Triton."""
