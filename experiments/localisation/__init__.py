"""Networks whose last layer says a box: what it means, its loss, and how boxes are tested."""
