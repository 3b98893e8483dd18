"""Collapse measured on a stage or a checkpoint: the monitor, the diagnosis, their reports."""
