"""Training a run: the step, the optimiser, the loop."""
