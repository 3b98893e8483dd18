"""Whether an SSL stage that is continued, or whose encoder is taken, is the one that would be trained now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emim_nnunet.checkpoints.io import load_checkpoint
from emim_nnunet.datasets.channel_names import channel_names
from emim_nnunet.datasets.checksums import case_digests
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import Case
from emim_nnunet.datasets.stage_cases import StageCases
from emim_nnunet.errors import UserError, listed
from emim_nnunet.settings.plans import check_plans, inheritance
from emim_nnunet.storage.versions import versions
from emim_nnunet.training.checkpoint import FINAL

LOOP_ONLY = (
    "checkpoint_minutes",
    "reconstruction_every",
    "collapse_patience",
    "collapse_reference",
    "max_skipped_steps",
    "tracker_pictures",
)
CONFIGURATION = (  # the other keys of a configuration concern the segmentation alone
    "data_identifier",
    "preprocessor_name",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
DECODER = ("n_conv_per_stage_decoder", "deep_supervision")  # of the segmentation network
PACKAGES = ("emim_nnunet", "nnunetv2", "torch")
MAX_SHOWN = 60
NO_CHECKSUMS = (
    "The preprocessed cases have no checksums (they are of an older version, or nnU-Net's own), so --c will not notice when "
    "their content changes; emim_plan_and_preprocess writes some"
)


@dataclass(frozen=True)
class Setup:
    """Everything a stage is trained with, except its cases.

    Attributes:
        block: The ``emim`` block, inheritance resolved.
        plans: The plans JSON as a dict.
        configuration: The name of a configuration of the plans.
        dataset_json: The content of ``dataset.json``.
    """

    block: dict[str, Any]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]

    @classmethod
    def of_checkpoint(cls, checkpoint: dict[str, Any]) -> Setup:
        """The setup of the stage that wrote a checkpoint.

        Raises:
            UserError: The plans in the checkpoint are not valid.
        """
        check_plans(checkpoint["plans"], checkpoint["configuration"])
        return cls(*(checkpoint[key] for key in ("emim", "plans", "configuration", "dataset_json")))

    def decisive(self) -> dict[str, str]:
        """Key -> value as JSON, of everything that decides what an SSL stage computes, except the names of the channels."""
        links = inheritance(self.plans, self.configuration)
        content = {key: value for link in links for key, value in link.items()}
        architecture = content.get("architecture", {})
        given = {k: v for k, v in self.block.items() if v is not None}  # null is the default
        values = {k: v for k, v in given.items() if not k.startswith("finetune_") and k not in LOOP_ONLY}
        values |= {key: content.get(key) for key in CONFIGURATION}
        values |= {"transpose_forward": self.plans.get("transpose_forward")}
        values |= {"network_class_name": architecture.get("network_class_name")}
        values |= {k: v for k, v in architecture.get("arch_kwargs", {}).items() if k not in DECODER}
        return {key: json.dumps(value, sort_keys=True) for key, value in values.items()}


def check_continued(checkpoint: dict[str, Any], now: Setup, cases: StageCases, folder: Path) -> list[str]:
    """Refuse to continue a stage with other settings, plans, channels, cases or data.

    Args:
        checkpoint: The content of the checkpoint that is continued.
        now: The setup that the stage would be trained with now.
        cases: The cases that it would be trained and measured on now.
        folder: The output folder of the stage, for the message.

    Returns:
        Lines for the log: that the data cannot be compared, and that packages have other versions now.

    Raises:
        UserError: Something differs; the message names it.
    """
    advice = f"move {folder} away to start anew, or train with a configuration of another name"
    then = Setup.of_checkpoint(checkpoint)
    _refuse_other_setup(then, now, advice)
    then_channels, channels = (channel_names(s.dataset_json) for s in (then, now))
    if then_channels != channels:
        raise UserError(
            f"the SSL stage there was made with the channels {', '.join(then_channels)}, dataset.json now has "
            f"{', '.join(channels)}: {advice}"
        )
    held_out = cases.probe if cases.probe_is_held_out else []
    for what, chosen in (("training", cases.training), ("validation", held_out)):
        changed = {case.identifier for case in chosen} ^ set(checkpoint[f"{what}_cases"])
        if changed:
            raise UserError(
                f"the SSL stage there was made with other {what} cases ({len(changed)} differ: {_listed(changed)}): {advice}"
            )
    return [*_refuse_other_data(checkpoint, [*cases.training, *cases.probe], advice), *_other_versions(checkpoint)]


def finished_stage(folder: Path, now: Setup, data: PreprocessedDataset) -> tuple[dict[str, Any], list[str]] | None:
    """Load the final checkpoint of a finished SSL stage, if its encoder fits what would be trained now.

    The cases that it learnt from and the names of its channels are not compared; the caller must check them.

    Args:
        folder: The output folder of the stage.
        now: The setup that the stage would be trained with now.
        data: The data that would be trained on now.

    Returns:
        The checkpoint on the CPU and lines for the log, or None when the stage is not finished.

    Raises:
        UserError: The stage was made with other settings, plans or data; the message names what differs.
    """
    if not (folder / FINAL).is_file():
        return None
    checkpoint = load_checkpoint(folder / FINAL)
    advice = (
        f"move {folder} away to pretrain anew, or take its encoder as it is with emim_export and -pretrained_weights"
    )
    _refuse_other_setup(Setup.of_checkpoint(checkpoint), now, advice)
    known = checkpoint.get("case_digests", {})
    cases = [case for case in (*data.labelled, *data.unlabelled) if case.identifier in known]
    return checkpoint, [*_refuse_other_data(checkpoint, cases, advice), *_other_versions(checkpoint)]


def _refuse_other_setup(then: Setup, now: Setup, advice: str) -> None:
    old, new = then.decisive(), now.decisive()
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        changes = ", ".join(_change(key, old.get(key, "default"), new.get(key, "default")) for key in different)
        raise UserError(f"the SSL stage there was made with another value of {changes}: {advice}")


def _change(key: str, old: str, new: str) -> str:
    return f"{key} ({old}, now {new})" if max(len(old), len(new)) <= MAX_SHOWN else key


def _refuse_other_data(checkpoint: dict[str, Any], cases: Sequence[Case], advice: str) -> list[str]:
    """Refuse cases whose voxels have changed since the checkpoint; a line for the log where it holds no checksums."""
    then = checkpoint.get("case_digests", {})
    if not then:
        return [
            "The checkpoint holds no checksums of its cases, so it is not known whether their content is still the same"
        ]
    known = [case for case in cases if case.identifier in then]
    now = case_digests(known, then)
    changed = sorted(identifier for identifier, digest in now.items() if digest != then[identifier])
    if changed:
        raise UserError(
            f"the content of {len(changed)} preprocessed cases has changed since the SSL stage there was made "
            f"({_listed(changed)}): {advice}"
        )
    return []


def _other_versions(checkpoint: dict[str, Any]) -> list[str]:
    then, now = checkpoint["versions"], versions()
    changes = [f"{p} {then.get(p)}, now {now[p]}" for p in PACKAGES if then.get(p) != now[p]]
    return [f"WARNING: the SSL stage was made with other versions ({'; '.join(changes)})"] if changes else []


def _listed(identifiers: Sequence[str] | set[str]) -> str:
    return listed(sorted(identifiers))
