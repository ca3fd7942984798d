"""What `cnn-depth data` does to a set of images: check it, preview it, prepare it."""
