"""Where and when experiments run: the command line and the verbs behind it."""
