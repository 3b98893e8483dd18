"""Does pretraining pay? The experiment on real patients."""
