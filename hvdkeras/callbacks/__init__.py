"""The Keras callbacks of a rank, one a file."""
