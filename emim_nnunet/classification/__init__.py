"""What a pretrained encoder knows of whole cases: features, and classes and numbers, on the data that nnU-Net preprocessed."""
