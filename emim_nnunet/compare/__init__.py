"""One protocol for all SSL methods: same data, same compute, same fine-tuning, several seeds, paired differences."""

from emim_nnunet.compare.comparison import compare
from emim_nnunet.compare.protocol import Protocol

__all__ = ["Protocol", "compare"]
