"""Replicas that step together, variables that they share, and arrays that are sharded over a mesh of devices."""

from .replicas import ReplicaContext, Replicas, get_replica_context

__all__ = ["ReplicaContext", "Replicas", "get_replica_context"]
