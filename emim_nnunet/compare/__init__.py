"""Comparison of SSL methods by one protocol: equal data, compute and fine-tuning, several seeds, paired differences."""

from emim_nnunet.compare.comparison import compare
from emim_nnunet.compare.protocol import Protocol

__all__ = ["Protocol", "compare"]
