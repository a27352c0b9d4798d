"""What a checkpoint is: its folder, who writes it, and the state of one rank in it."""
