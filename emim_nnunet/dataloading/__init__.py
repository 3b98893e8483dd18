"""Crops: from preprocessed files to batches."""
