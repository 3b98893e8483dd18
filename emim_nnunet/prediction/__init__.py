"""Prediction with what a case has: a trained model of nnU-Net, images as they are, what each subset of them is worth."""
