"""What a checkpoint is: its folder, the writer of its center, and the state of a rank in it."""
