"""A whole training run: its config, its folder, and what it says of itself."""
