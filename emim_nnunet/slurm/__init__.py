"""A whole project as jobs of SLURM: what they run, what they need, and which must be finished before which."""

from emim_nnunet.slurm.project import Data, Part, comparison, folds, preparation, pretraining
from emim_nnunet.slurm.script import Job, Resources, Surroundings, check_line, program

__all__ = [
    "Data",
    "Job",
    "Part",
    "Resources",
    "Surroundings",
    "check_line",
    "comparison",
    "folds",
    "preparation",
    "pretraining",
    "program",
]
