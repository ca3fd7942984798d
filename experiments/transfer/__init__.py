"""What a trained network has learned, for other tasks: its features, and heads on them."""
