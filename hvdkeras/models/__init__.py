"""A Keras model as a vector of weights, as bytes, and as a schema of columns."""
