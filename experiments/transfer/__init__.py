"""What a trained network has learned: classifiers of its features, on other sets than its own."""
