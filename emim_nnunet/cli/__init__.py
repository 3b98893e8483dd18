"""Console commands: argument parsing only."""
