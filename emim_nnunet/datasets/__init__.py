"""Data sets on the disk, raw and preprocessed: which cases there are, whose they are, and what their channels mean."""
