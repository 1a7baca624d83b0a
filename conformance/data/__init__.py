"""What is asked and what was seen: scenarios and their cases, trajectories, the frameworks' deviations, trace files."""
