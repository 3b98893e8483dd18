"""What the user of ``emim_plan_and_preprocess`` may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emim_nnunet.datasets.shards import Shard
from emim_nnunet.errors import UserError
from emim_nnunet.planners.transfer import Like
from emim_nnunet.settings.plans import is_folder_name


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a data set is planned and preprocessed.

    Attributes:
        configurations: Names of the configurations to preprocess, where the plans have them.
        gpu_memory_target: GB that both stages must fit; None = the planner's default.
        num_processes_fingerprint: Workers of the fingerprint extraction, at most one per case and core; at least 1.
        num_processes: Workers of the preprocessing, at most, see :func:`.preprocess.preprocess_cases`; at least 1.
        plans_name: Name of the plans; None = the planner's own, with ``like`` one that names the source.
        target_spacing: Voxel size of 3d_fullres, three numbers in mm; None = nnU-Net plans it.
        like: Source of architecture, patch and batch size; configurations of as many axes get them. None = all is planned.
        backbone: The network of 3D configurations, a key of :data:`BACKBONES`; None = nnU-Net's residual U-Net.
        like_spacing: Whether the voxel size is that of the source too.
        verify_integrity: Whether nnU-Net's integrity check is run on the labelled cases first.
        clean: Whether the fingerprint is extracted anew where there is one.
        preprocess: Whether cases are preprocessed after planning.
        body: Whether preprocessing looks for the body where the background is not 0; otherwise everything counts there.
        verbose: Whether nnU-Net says what it does.
        keep_going: Whether cases that cannot be used are left out; otherwise the first one ends the command.
        add: Whether the plans that are there are kept and cases that are new in the raw data set are taken in.
        shard: The part of the cases that this process looks at or preprocesses; None = all.
        finish: Whether only what shards have done is put together.

    Raises:
        UserError: A value is out of range, or two of them contradict each other.
    """

    configurations: Sequence[str] = ("2d", "3d_fullres", "3d_lowres")
    gpu_memory_target: float | None = None
    num_processes_fingerprint: int = 8
    num_processes: int = 4
    plans_name: str | None = None
    target_spacing: Sequence[float] | None = None
    like: Like | None = None
    backbone: str | None = None
    like_spacing: bool = False
    verify_integrity: bool = False
    clean: bool = False
    preprocess: bool = True
    body: bool = True
    verbose: bool = False
    keep_going: bool = False
    add: bool = False
    shard: Shard | None = None
    finish: bool = False

    def __post_init__(self) -> None:
        if self.gpu_memory_target is not None and self.gpu_memory_target <= 0:
            raise UserError(f"-gpu_memory_target must be a positive number of GB, not {self.gpu_memory_target}")
        like = self.like
        if like is not None and self.like_spacing and (like.spacing is None or self.target_spacing is not None):
            raise UserError(
                "--like_spacing: the source does not say its spacing, or -overwrite_target_spacing is given too"
            )
        if self.backbone is not None and like is not None:
            raise UserError(
                "--backbone and --like contradict each other: the source of --like says which network it is"
            )
        if self.backbone is not None and "2d" in self.configurations:
            raise UserError("--backbone: Primus is 3D only; name the 3D configurations with -c 3d_fullres")
        for option, value in (("-np", self.num_processes), ("-npfp", self.num_processes_fingerprint)):
            if value < 1:
                raise UserError(f"{option} {value}: at least 1 worker is needed")
        if self.shard is not None and self.finish:
            raise UserError("--shard and --finish contradict each other: --finish comes when all shards are done")
        if self.add and (self.clean or not self.preprocess or self.shard is not None or self.finish):
            raise UserError("--add keeps the plans and goes with neither --clean, --no_pp, --shard nor --finish")
        name = self.plans_name_or_default
        if name is not None and not is_folder_name(name):
            raise UserError(f"-overwrite_plans_name {name!r}: use letters, digits, _ . + and - only")

    @property
    def plans_name_or_default(self) -> str | None:
        """The name of the plans; None = the planner's own."""
        if self.backbone is not None:
            return self.plans_name or f"nnUNetEMIMPlans_{self.backbone}"
        if self.like is None:
            return self.plans_name
        return self.plans_name or f"nnUNetEMIMPlans_like_{self.like.name}"

    @property
    def spacing(self) -> Sequence[float] | None:
        """The voxel size of 3d_fullres in mm, of the user or of the source; None = nnU-Net plans it."""
        if self.like is not None and self.like_spacing:
            return self.like.spacing
        return self.target_spacing
