"""The Keras callbacks of a rank, one a file; `Position` runs before all that read it."""
