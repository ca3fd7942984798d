"""What rows need: their runs, in order, and what these cost."""
