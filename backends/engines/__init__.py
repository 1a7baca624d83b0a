"""Engines: what computes on buckets. Each is imported by the registry when it is first asked for."""
