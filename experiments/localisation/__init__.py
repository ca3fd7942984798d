"""Networks whose last layer says a box: its meaning, its loss, and the tests of boxes."""
