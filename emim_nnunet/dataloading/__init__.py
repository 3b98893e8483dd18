"""Crops, splits and augmentation: from preprocessed files to batches on the training device."""
