"""Comparison of SSL methods by one protocol: equal data, compute and fine-tuning, several draws, paired differences."""

from emim_nnunet.compare.comparison import compare, list_jobs, run_job
from emim_nnunet.compare.protocol import Protocol

__all__ = ["Protocol", "compare", "list_jobs", "run_job"]
