"""The commands of `cnn-depth`, a module each."""
