"""The published rule, implemented independently, and how far a trajectory is from it or from another one."""
