"""What a target is asked and how it is judged: the oracle, traces, bits and laws, and a verdict for each."""
