"""What is done to a crop on the training device: boxes, intensity, augmentation."""
