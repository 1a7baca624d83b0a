"""The engine inside XLA: the host engine's kernels as calls within programs that JAX compiles."""
