"""How a call of attention is computed: fused kernels, a block of queries at a time, or materialised."""
