"""med-moco (arXiv 2402.14611): MoCo v2 + a contrastive loss on local features + ZCA whitening behind the backbone.

Medical images are so similar to each other that MoCo's features collapse to few dimensions. Two remedies: a second contrast
between *regions* in the first stage of the network, and whitening of the last features before the projector. Without both
(``local_weight`` 0, ``zca`` false) this is MoCo v2 (arXiv 2003.04297), with averages over regions in place of one over the
patch: instance normalisation fixes that one, so it would be about the same for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emim_nnunet.distributed import all_reduce_sum, gather_rows
from emim_nnunet.losses import info_nce, info_nce_rows
from emim_nnunet.methods.base import MethodOutput, SSLConfig, SSLMethod
from emim_nnunet.networks import MLP, ZCA, KeyQueue, PlannedEncoder, momentum_copy, momentum_update_, stage_grids
from emim_nnunet.settings.block import require
from emim_nnunet.views.augmentation import draw_flips, mirrored
from emim_nnunet.views.boxes import adaptive_pool, pool_boxes, take_boxes
from emim_nnunet.views.intensity import change_intensity, draw_intensity, draw_noise, unchanged_share

LOCAL_MODES = ("region", "gap")
GLOBAL_VECTORS = ("regions", "mean")
GLOBAL_REGIONS = 2  # per axis
VIEWS = ("query", "key")
MIN_FOREGROUND = 0.5
NO_BODY = 1e-3  # share of a region


@dataclass(frozen=True, kw_only=True)
class MoCoZCAConfig(SSLConfig):
    """Settings of MoCo v2 with local features and ZCA whitening.

    Attributes:
        temperature: Divides the similarities of both InfoNCE losses.
        key_momentum: Share of the momentum encoder that each step keeps. 0.999 belongs to runs of many thousand steps.
        queue_size: Number of keys that are remembered; fewer than the different crops of the data set.
        projection_width: Columns of the embedding.
        global_vector: What of a view enters the projector. ``regions``: the averages of all stages over the body in the
            2 x 2 x 2 parts of what both views share; ``mean``: the average of the deepest stage over the view, which instance
            normalisation makes almost constant (for stages that were begun with it).
        local_weight: Weight of the local loss; 0 leaves it out.
        local_mode: ``region``: every region of the first view's overlap with the second one is to find its own place there;
            ``gap``: the whole first-stage output, averaged, against a queue of such averages.
        local_regions: Number of regions per axis.
        zca: Whiten the positions of the deepest stage before they are averaged.
        zca_group: Most channels that are whitened together.
        zca_eps: Shrinkage of the covariance towards a multiple of the identity.
        zca_rows: About as many positions make up the statistics that evaluation whitens with; training takes those at hand.
        view_overlap: Least share of a view that the other one covers too.
        view_probability: Probability of each of the five changes of a view's intensities; None = nnU-Net's own, 0.1 to 0.3.
        view_mirror: Mirror each view for itself, besides ``mirror``, which mirrors crops.
        p_drop_modality: Probability that a view lacks one of its modalities (never the only one).
    """

    formerly: ClassVar[dict[str, Any]] = {"view_probability": None, "view_mirror": False, "global_vector": "mean"}
    temperature: float = 0.2
    key_momentum: float = 0.999
    queue_size: int = 2048
    projection_width: int = 128
    global_vector: str = "regions"
    local_weight: float = 1.0
    local_mode: str = "region"
    local_regions: int = 4
    zca: bool = True
    zca_group: int = 32
    zca_eps: float = 0.01
    zca_rows: int = 512
    view_overlap: float = 0.5
    view_probability: float | None = 0.8
    view_mirror: bool = True
    p_drop_modality: float = 0.0

    def __post_init__(self) -> None:
        for name in ("queue_size", "projection_width", "local_regions", "zca_group", "zca_rows"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(self.temperature > 0, f"temperature must be positive, not {self.temperature}")
        require(0 <= self.key_momentum <= 1, f"key_momentum must be in [0, 1], not {self.key_momentum}")
        require(self.local_weight >= 0, f"local_weight must be at least 0, not {self.local_weight}")
        require(self.local_mode in LOCAL_MODES, f"local_mode must be one of {', '.join(LOCAL_MODES)}")
        require(self.global_vector in GLOBAL_VECTORS, f"global_vector must be one of {', '.join(GLOBAL_VECTORS)}")
        require(
            not self.zca or self.global_vector == "regions",
            "zca whitens the positions of global_vector 'regions'. Earlier versions whitened the 'mean' without a gradient: a "
            "stage that was begun so cannot go on, move it away to start anew",
        )
        require(0 < self.zca_eps <= 1, f"zca_eps must be in (0, 1], not {self.zca_eps}")
        require(
            not self.zca or self.zca_rows >= 2 * self.zca_group,
            f"zca_rows {self.zca_rows} must be at least twice zca_group {self.zca_group}: fewer rows have no covariance",
        )
        require(0 < self.view_overlap <= 1, f"view_overlap must be in (0, 1], not {self.view_overlap}")
        probability = self.view_probability
        require(
            probability is None or 0 <= probability <= 1,
            f"view_probability must be null or in [0, 1], not {probability}",
        )
        require(0 <= self.p_drop_modality <= 1, f"p_drop_modality must be in [0, 1], not {self.p_drop_modality}")


class Branch(nn.Module):
    """Encoder with its heads: of the queries, and, following slowly, of the keys.

    Args:
        encoder: Planned encoder.
        columns: Length of the global vector.
        config: Settings.
    """

    def __init__(self, encoder: PlannedEncoder, columns: int, config: MoCoZCAConfig) -> None:
        super().__init__()
        self.encoder = encoder
        first, last = encoder.output_channels[0], encoder.output_channels[-1]
        self.head = MLP(columns, last, config.projection_width)
        self.local_head = MLP(first, first, config.projection_width) if config.local_weight > 0 else None


class MoCoZCA(SSLMethod[MoCoZCAConfig]):
    """MoCo v2 with local features and ZCA whitening on a planned encoder.

    Args:
        encoder: Planned encoder that returns all stage outputs.
        num_modalities: C.
        patch_size: Voxels per axis.
        config: Settings.
    """

    config_class: ClassVar[type] = MoCoZCAConfig
    paper: ClassVar[str] = "med-moco: arXiv 2402.14611; MoCo v2: arXiv 2003.04297"

    def __init__(
        self, encoder: PlannedEncoder, num_modalities: int, patch_size: Sequence[int], config: MoCoZCAConfig
    ) -> None:
        self.check(config, patch_size, encoder.strides)
        super().__init__(encoder, num_modalities, patch_size, config)
        widths = encoder.output_channels
        by_regions = config.global_vector == "regions"
        columns = sum(widths) * GLOBAL_REGIONS ** len(patch_size) if by_regions else widths[-1]
        query = Branch(encoder, columns, config)
        self.head, self.local_head = query.head, query.local_head
        self.momentum = momentum_copy(query)
        self.queue = KeyQueue(config.queue_size, config.projection_width)
        by_average = config.local_weight > 0 and config.local_mode == "gap"
        self.local_queue = KeyQueue(config.queue_size, config.projection_width) if by_average else None
        self.whitening = nn.ModuleDict(
            {
                view: ZCA(widths[-1], group=config.zca_group, eps=config.zca_eps, num_rows=config.zca_rows)
                for view in (VIEWS if config.zca else ())
            }
        )

    @classmethod
    def check(cls, config: MoCoZCAConfig, patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> None:
        """See :meth:`SSLMethod.check`."""
        grid = stage_grids(strides, patch_size)[0]
        require(
            config.local_regions <= min(grid),
            f"local_regions {config.local_regions} are more than the first stage has positions, {list(grid)}",
        )

    @classmethod
    def crop_size(cls, config: MoCoZCAConfig, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The patch and room to shift two views in, so that ``view_overlap`` of them is shared whatever the shift."""
        share = 1.0 - config.view_overlap ** (1.0 / len(patch_size))
        return tuple(p + floor(p * share) for p in patch_size)

    def draw(self, generator: torch.Generator, present: Tensor | None = None) -> dict[str, Tensor]:
        """Per view: ``VIEW_lower`` (1, axes) int64, ``VIEW_intensity`` (1, C, 5), ``VIEW_noise``, ``VIEW_kept`` (1, C) bool,
        ``VIEW_flips`` (1, axes) bool."""
        room = [c - p for c, p in zip(self.crop_size(self.config, self.patch_size), self.patch_size, strict=True)]
        present = self.all_or(present)
        draws: dict[str, Tensor] = {}
        for view in VIEWS:
            lower = [torch.randint(r + 1, (1,), generator=generator) for r in room]
            intensity = draw_intensity(
                self.num_modalities, generator, present, probability=self.config.view_probability
            )
            shape = (1, self.num_modalities, *self.patch_size)
            draws |= {
                f"{view}_lower": torch.stack(lower, dim=1),
                f"{view}_intensity": intensity,
                f"{view}_noise": draw_noise(shape, intensity, generator, self.queue.keys.device),
                f"{view}_kept": self._draw_kept(generator, present),
            }
        for view in VIEWS:  # after all that stages of earlier versions drew
            draws[f"{view}_flips"] = draw_flips(len(room), generator) & self.config.view_mirror
        return draws

    def _draw_kept(self, generator: torch.Generator, present: Tensor) -> Tensor:
        kept, choices = torch.ones((1, self.num_modalities), dtype=torch.bool), present.nonzero()[:, 0]
        dropped = choices[torch.randint(len(choices), (), generator=generator)]
        if torch.rand((), generator=generator) < self.config.p_drop_modality and len(choices) > 1:
            kept[0, dropped] = False
        return kept

    def forward(self, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> MethodOutput:
        """Contrast of each view with the other one's key against the queue, and of the regions that they share."""
        config, subject = self.config, draws["subject"]
        with torch.no_grad():
            key_features = self._features("key", self.momentum.encoder, image, foreground, draws)
            key_vector, key_found = self.global_vectors("key", key_features, foreground, draws)
            key = _embed(self.momentum.head, key_vector)
            local_head = self.momentum.local_head
            local_key = None if local_head is None else self._local("key", local_head, key_features[0], draws)
        features = self._features("query", self.encoder, image, foreground, draws)
        vector, found = self.global_vectors("query", features, foreground, draws)
        query = _embed(self.head, vector)
        positive, negatives = (query * key).sum(1), self.queue.similarities(query, subject)
        loss = info_nce(positive, negatives, config.temperature)
        hit = (positive > negatives.amax(1)).float()
        hits, count = all_reduce_sum(torch.stack([hit.sum(), hit.new_tensor(float(len(hit)))])).unbind()
        terms = {"contrast": loss.detach(), "top1": hits / count.clamp_min(1.0)}
        terms["unchanged_views_fraction"] = unchanged_share(*(draws[f"{view}_intensity"] for view in VIEWS))
        state = {"subject": subject, "key": key} | key_found | found
        if self.local_head is not None:
            assert local_key is not None  # both branches have the head
            local_query = self._local("query", self.local_head, features[0], draws)
            local = self._local_loss(local_query, local_key, foreground, draws)
            terms["local"] = local.detach()
            loss = loss + config.local_weight * local
            if self.local_queue is not None:
                state["local_key"] = local_key
        return MethodOutput(loss, terms, state=state)

    def global_vectors(
        self, view: str, features: Sequence[Tensor], foreground: Tensor, draws: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What enters the projector.

        Args:
            view: ``query`` or ``key``.
            features: The stage outputs for that view.
            foreground: (B, 1, *crop) bool.
            draws: What :meth:`draw` gave.

        Returns:
            (B, columns) float32, and, where positions are whitened, what :meth:`ZCA.update` takes, named ``VIEW/NAME``, the
            same on all ranks. A stage weighs half as much as the one before it: the deeper it is, the less do the features of
            an untrained network tell a second view of a crop from another crop.
        """
        if self.config.global_vector == "mean":
            return _average(features[-1]), {}
        inside = take_boxes(foreground, draws[f"{view}_lower"], self.patch_size).float()
        parts, found = [], {}
        for stage, x in enumerate(features):
            body = adaptive_pool(inside, x.shape[2:])
            if self.config.zca and stage == len(features) - 1:
                rows, statistics = self.whitening[view](x.flatten(2).transpose(1, 2).flatten(0, 1), body.flatten())
                x = rows.unflatten(0, (len(x), -1)).transpose(1, 2).view(x.shape)
                found = {f"{view}/{name}": value for name, value in statistics.items()}
            box = self._shared_box(view, x.shape[2:], draws)
            sums, shares = (pool_boxes(part, *box, GLOBAL_REGIONS) for part in (x.float() * body, body))
            vector = (sums / shares.clamp_min(NO_BODY)).flatten(1)
            parts.append(vector / vector.shape[1] ** 0.5 / 2.0**stage)
        return torch.cat(parts, 1), found

    def _features(
        self,
        view: str,
        encoder: Callable[[Tensor], list[Tensor]],
        image: Tensor,
        foreground: Tensor,
        draws: dict[str, Tensor],
    ) -> list[Tensor]:
        """Stage outputs for a view, mirrored back: at the same places as the crop and the other view."""
        return [mirrored(x, draws[f"{view}_flips"]) for x in encoder(self._view(view, image, foreground, draws))]

    def _view(self, view: str, image: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> Tensor:
        lower = draws[f"{view}_lower"]
        patch, inside = (take_boxes(t, lower, self.patch_size) for t in (image, foreground))
        patch = change_intensity(patch, inside, draws[f"{view}_intensity"], draws[f"{view}_noise"])
        kept = draws[f"{view}_kept"]
        return mirrored(patch * kept.view(*kept.shape, *[1] * len(self.patch_size)), draws[f"{view}_flips"])

    def _local(self, view: str, head: nn.Module, features: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Embeddings of regions (B * r^axes, width), or of the whole view (B, width)."""
        if self.config.local_mode == "gap":
            return _embed(head, _average(features))
        regions = pool_boxes(features, *self._shared_box(view, features.shape[2:], draws), self.config.local_regions)
        return _embed(head, regions.flatten(2).transpose(1, 2).flatten(0, 1))

    def _shared_box(self, view: str, grid: Sequence[int], draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Begin and end of the part that both views show, in positions of a stage's output for one of them."""
        lowers = [draws[f"{v}_lower"] for v in VIEWS]
        patch, scale = (lowers[0].new_tensor(s).float() for s in (self.patch_size, grid))
        lower, upper = torch.maximum(*lowers), torch.minimum(*lowers) + patch
        own = draws[f"{view}_lower"]
        return (lower - own) * scale / patch, (upper - own) * scale / patch

    def _local_loss(self, query: Tensor, key: Tensor, foreground: Tensor, draws: dict[str, Tensor]) -> Tensor:
        temperature = self.config.temperature
        if self.local_queue is not None:
            negatives = self.local_queue.similarities(query, draws["subject"])
            return info_nce((query * key).sum(1), negatives, temperature)
        inside = take_boxes(foreground, draws["query_lower"], self.patch_size)
        box = self._shared_box("query", self.patch_size, draws)
        share = pool_boxes(inside, *box, self.config.local_regions).flatten()
        return info_nce_rows(query, key, (share >= MIN_FOREGROUND).float(), temperature)

    @torch.no_grad()
    def after_step(self, state: dict[str, Tensor] | None) -> None:
        """The momentum branch follows, the queue takes the new keys, whitening the new vectors; alike on all ranks."""
        assert state is not None  # forward always gives one
        for name, target in self.momentum.named_children():
            momentum_update_(target, getattr(self, name), self.config.key_momentum)
        rows = {name: gather_rows(value)[0] for name, value in state.items() if "/" not in name}
        self.queue.push(rows["key"], rows["subject"])
        if self.local_queue is not None:
            self.local_queue.push(rows["local_key"], rows["subject"])
        for view, whitening in self.whitening.items():
            assert isinstance(whitening, ZCA)
            prefix = f"{view}/"
            whitening.update({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})


def _average(features: Tensor) -> Tensor:
    """(B, D, *S) -> (B, D) float32."""
    return features.float().flatten(2).mean(2)


def _embed(head: nn.Module, rows: Tensor) -> Tensor:
    """Rows of length 1, float32."""
    return F.normalize(head(rows).float(), dim=1)
