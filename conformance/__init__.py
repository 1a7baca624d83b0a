"""The conformance suite: what the real optimizers do, recorded, and the proof that this library does the same."""
