"""Masked self-distillation: what the targets are, which cells count, and how the teacher follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emim_nnunet.errors import UserError
from emim_nnunet.methods.self_distillation import MaskedSelfDistillation
from tests.toy import toy_batch, toy_method

GRID = (4, 4, 4)


def make(**settings: object) -> MaskedSelfDistillation:
    defaults = {"pyramid_levels": (1, 2), "projector_widths": (16, 16), "distillation_stages": 2}
    return toy_method(MaskedSelfDistillation, **defaults | settings)


def everything(foreground: Tensor) -> tuple[Tensor, Tensor]:
    """All cells hidden, and all of the patch in the body."""
    return torch.ones(len(foreground), 1, *GRID, dtype=torch.bool), torch.ones_like(foreground)


def test_a_constant_has_a_loss_of_one_whatever_the_teacher_says() -> None:
    method = make()
    image, foreground, _ = toy_batch(method)
    with torch.no_grad():
        method.head[-1].weight.zero_()
        method.head[-1].bias.zero_()
        features = method.teacher(image)
        loss, _ = method.distil(features, [1e3 * f + 7 for f in features], *everything(foreground))
    assert loss.item() == pytest.approx(1.0, abs=1e-3)


def test_targets_are_the_stages_side_by_side_normalised_over_the_cells_of_a_sample() -> None:
    method = make()
    image, foreground, _ = toy_batch(method)
    method.head = torch.nn.Identity()
    with torch.no_grad():
        features = method.teacher(image)
        columns = torch.cat([F.avg_pool3d(features[1], 2), features[2]], dim=1)  # grids of 8 and 4 positions
        target = F.instance_norm(columns)
        loss, _ = method.distil([features[0], features[1] + 1, features[2] - 2], features, *everything(foreground))
    student = columns + torch.cat([torch.full((8,), 1.0), torch.full((16,), -2.0)]).view(1, -1, 1, 1, 1)
    assert loss.item() == pytest.approx((student - target).square().mean().item(), rel=1e-4)


def test_only_hidden_cells_of_the_body_count() -> None:
    method = make()
    image, foreground, draws = toy_batch(method)
    hidden = draws["masked"].all(1, keepdim=True)
    body = F.avg_pool3d(foreground.float(), 4) >= 0.5
    assert 0 < (hidden & body).sum() < hidden.sum()
    with torch.no_grad():
        features = method.teacher(image)
        losses = []
        for changed in (hidden & body, ~(hidden & body)):
            other = [*features[:2], features[2] + changed * torch.randn(features[2].shape)]
            losses.append(method.distil(other, features, hidden, foreground)[0].item())
        unchanged = method.distil(features, features, hidden, foreground)[0].item()
    assert losses[0] != unchanged
    assert losses[1] == unchanged


def test_variation_of_the_targets_tells_a_collapsed_teacher() -> None:
    method = make()
    image, foreground, draws = toy_batch(method)
    healthy = method(image, foreground, draws).terms["target_variation"]
    assert 0.1 < healthy < 1.0
    with torch.no_grad():
        for name, parameter in method.teacher.named_parameters():
            if "norm.weight" in name:
                parameter.zero_()  # every position gives the biases
            elif "norm.bias" in name:
                parameter.fill_(1.0)
        output = method(image, foreground, draws)
    assert output.terms["target_variation"] < 1e-6
    assert torch.isfinite(output.loss)


def test_the_teacher_sees_the_whole_patch_and_follows_the_student() -> None:
    method = make(teacher_momentum=0.75)
    seen: list[Tensor] = []
    method.teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    image, foreground, draws = toy_batch(method)
    output = method(image, foreground, draws)
    output.loss.backward()
    assert torch.equal(seen[0], image)
    assert all(p.grad is None for p in method.teacher.parameters())
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.after_step(output.state)
    pairs = zip(before, method.teacher.parameters(), method.encoder.parameters(), strict=True)
    assert all(torch.allclose(now, 0.75 * old + 0.25 * student) for old, now, student in pairs)


def test_by_default_the_deeper_half_of_the_stages_is_distilled() -> None:
    assert make(distillation_stages=None).head[0].in_features == 8 + 16  # two of three


def test_the_teacher_is_not_what_is_transferred() -> None:
    names = list(make().state_dict())
    assert any(name.startswith("teacher.") for name in names)
    assert not any("teacher" in name for name in names if name.startswith("encoder."))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation_stages": 4}, "distillation_stages 4 are more than the encoder has, which is 3"),
        ({"distillation_stages": 0}, "distillation_stages must be at least 1"),
        ({"distillation_weight": 0.0}, "distillation_weight must be more than 0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**settings)
