"""The training loops: subclasses of nnU-Net's trainer, and what they write."""
