"""The Keras callbacks of a rank, one a file; `Position` runs first, because the others read it."""
