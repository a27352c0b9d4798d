"""What one rank does in a training."""
