"""Options of ``emim_slurm`` of which no jobs can be made: nothing is printed but the one line, nothing is submitted."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.table import bad, good
from tests.robustness.world import DATASET_ID

PROJECT = ["1", "3d_fullres"]
PREPARED = [DATASET_ID, "tiny", "--prepared"]


@bad("slurm", r"argument dataset: must be the id of a data set, or its name")
def project_of_no_data_set(world: Path) -> list[str]:
    return ["Dataset077_Nothing", "3d_fullres"]


@bad("slurm", r"-d 77: expected one folder Dataset077_NAME")
def project_of_unknown_data_set(world: Path) -> list[str]:
    return ["77", "3d_fullres"]


@bad("slurm", r"CONFIGURATION '\.\./x': use letters")
def configuration_that_leads_away(world: Path) -> list[str]:
    return ["1", "../x"]


@bad("slurm", r"--time 'soon': must be minutes, hours:minutes:seconds or days-hours")
def time_that_is_none(world: Path) -> list[str]:
    return [*PROJECT, "--time", "soon"]


@bad("slurm", r"--mem '64 GB': must be a number with K, M, G or T")
def memory_with_a_space(world: Path) -> list[str]:
    return [*PROJECT, "--mem", "64 GB"]


@bad("slurm", r"--partition 'gpu\\n#SBATCH --wait': must be a name")
def partition_of_two_lines(world: Path) -> list[str]:
    return [*PROJECT, "--partition", "gpu\n#SBATCH --wait"]


@bad("slurm", r"--sbatch 'qos=long': must be an option of sbatch")
def option_without_dashes(world: Path) -> list[str]:
    return [*PROJECT, "--sbatch", "qos=long"]


@bad("slurm", r"--setup 'a\\nb': must be one line")
def setup_of_two_lines(world: Path) -> list[str]:
    return [*PROJECT, "--setup", "a\nb"]


@bad("slurm", r"--nodes 0: must be at least 1")
def no_node(world: Path) -> list[str]:
    return [*PROJECT, "--nodes", "0"]


@bad("slurm", r"--shards must be at least 1")
def no_shard(world: Path) -> list[str]:
    return [*PROJECT, "--shards", "0"]


@bad("slurm", r"--folds: numbers of folds, from 0")
def negative_fold(world: Path) -> list[str]:
    return [*PROJECT, "--folds", "-1"]


@bad("slurm", r"--warning 0: must be 1 to 65535 seconds")
def no_warning(world: Path) -> list[str]:
    return [*PROJECT, "--warning", "0"]


@bad("slurm", r"--logs .*nowhere: this folder does not exist, and SLURM does not make it")
def logs_without_folder(world: Path) -> list[str]:
    return [*PROJECT, "--logs", str(world / "nowhere")]


@bad("slurm", r"--logs '.*a b': sbatch takes letters")
def logs_with_a_space(world: Path) -> list[str]:
    (world / "a b").mkdir()
    return [*PROJECT, "--logs", str(world / "a b")]


@bad("slurm", r"--plan '--shard 1/2': shard cannot be given there")
def planning_with_a_shard(world: Path) -> list[str]:
    return [*PROJECT, "--plan=--shard 1/2"]


@bad("slurm", r"--plan '-np \"1': no closing quotation")
def planning_with_half_a_quotation(world: Path) -> list[str]:
    return [*PROJECT, '--plan=-np "1']


@bad("slurm", r"-gpu_memory_target must be a positive number of GB")
def planning_without_memory(world: Path) -> list[str]:
    return [*PROJECT, "--plan=-gpu_memory_target 0"]


@bad("slurm", r"--plan is for the preparation, which --prepared leaves out")
def planning_of_what_is_prepared(world: Path) -> list[str]:
    return [*PREPARED, "--plan=--keep_going"]


@bad("slurm", r"nnUNetEMIMPlans|has no configuration 3d_none")
def prepared_without_configuration(world: Path) -> list[str]:
    return [DATASET_ID, "3d_none", "--prepared"]


@bad("slurm", r"nothing is left to do with --prepared and --no_pretrain")
def project_without_parts(world: Path) -> list[str]:
    return [*PREPARED, "--no_pretrain"]


@bad("slurm", r"-tr nnUNetTrainer: there is no such trainer of an SSL stage; there are nnUNetTrainerEMIMPretrain")
def pretraining_with_another_trainer(world: Path) -> list[str]:
    return [*PREPARED, "-tr", "nnUNetTrainer"]


@bad("slurm", r"emim_compare: error: the following arguments are required: -o")
def comparison_without_folder(world: Path) -> list[str]:
    return [*PREPARED, "--compare=--draws 3"]


@bad("slurm", r"--only cannot be given there")
def comparison_of_one_part(world: Path) -> list[str]:
    return [*PREPARED, f"--compare=-o {world / 'comparison'} --only 3"]


@bad("slurm", r"--submit: there is no sbatch on this machine", PATH="{folder}")
def submission_without_slurm(world: Path) -> list[str]:
    return [*PREPARED, "--submit"]


@good("slurm")
def comparison_of_what_is_prepared(world: Path) -> list[str]:
    return [*PREPARED, "--no_pretrain", f"--compare=-o {world / 'comparison'} --arms scratch emim"]
