"""What one rank does in a training: `worker` is the entry, `training` the sequence, `replica` the model."""
