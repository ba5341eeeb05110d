"""Settings by name, each with its source: the paper's, and ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vqvae2.data.augmentation import AugmentationConfig
from vqvae2.data.config import Fit
from vqvae2.optim import TrainingConfig
from vqvae2.prior import PriorConfig
from vqvae2.vqvae import VQVAEConfig

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """The settings of a whole run.

    Attributes:
        source: where they come from.
        vqvae: of the VQ-VAE; image channels and size are replaced by the data's.
        vqvae_training: how it is trained.
        priors: of each level, top first; level, shapes and labels are replaced by the code store's.
        prior_training: how they are trained.
        augmentation: of the training images.
        copies: augmented copies of each training image whose codes the priors are trained on besides.
        sharpening: settings of the decoder's last part of the training, by name; none: there is no such part.
        detail: settings of the detail decoder's training by name, likewise.
        sampling: settings of sampling by name, a value for each level, top first: ``autoguidance`` and ``min_p``; none:
            the priors' own distribution.
        painted_sampling: the same of the levels that are drawn where the detail decoder paints the rest.
        size: --size of the data where the user gives none; None: the data's own.
        fit: --fit of the data where the user gives none.
        phantom_images: images of the phantom, where that is the data.
    """

    source: str
    vqvae: VQVAEConfig
    vqvae_training: TrainingConfig
    priors: tuple[PriorConfig, ...]
    prior_training: tuple[TrainingConfig, ...]
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    copies: int = 0
    sharpening: Mapping[str, Any] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    painted_sampling: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    size: str | None = None
    fit: Fit = "shrink"
    phantom_images: int = 2000

    def for_slices(self, axis: str) -> "Preset":
        """Return the preset for slices along an axis: a head seen from the side is not symmetric."""
        if axis != "sagittal":
            return self
        augmentation = replace(self.augmentation, augment_flip=0.0)
        return replace(self, augmentation=augmentation, priors=tuple(replace(p, mirrored=False) for p in self.priors))

    def prior(self, index: int) -> tuple[PriorConfig, TrainingConfig]:
        """Return the settings of level ``index``, 0 the top; levels beyond the preset's take those of its last."""
        last = len(self.priors) - 1
        return self.priors[min(index, last)], self.prior_training[min(index, last)]

    def sampling_for(self, levels: int) -> dict[str, tuple[float, ...]]:
        """Return the settings of sampling, a value for each level; further levels take those of the preset's last."""
        places = [min(i, len(self.priors) - 1) for i in range(levels)]
        return {name: tuple(values[place] for place in places) for name, values in self.sampling.items()}

    def prior_for(
        self,
        index: int,
        levels: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        num_embeddings: Sequence[int],
        attributes: Mapping[str, Sequence[str]],
        numbers: Sequence[str] = (),
    ) -> PriorConfig:
        """Return the settings of a level's prior for given codes.

        Where patches or mirroring do not fit the codes, they are left out.

        Args: as of `PriorConfig.for_level`.
        """
        codes = index, levels, shapes, num_embeddings, attributes, numbers
        settings, _ = self.prior(index)
        try:
            return settings.for_level(*codes)
        except ValueError:
            return replace(settings, patch=1, mirrored=False).for_level(*codes)


_OURS = VQVAEConfig(
    height=128,
    width=128,
    strides=(2, 4),
    num_embeddings=(512, 512),
    embedding_dim=(64, 64),
    hidden_channels=96,
    residual_channels=48,
    num_residual_layers=2,
    normalize="layer",
    level_dropout=0.1,
    mse_weight=1.0,
    l1_weight=0.2,
    ssim_weight=0.2,
)
_OURS_TRAINING = TrainingConfig(
    batch_size=16, optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.005, warmup_steps=100, evaluations=12
)
_PRIOR = PriorConfig(
    embedding_dim=64,
    channels=128,
    residual_channels=128,
    num_layers=10,
    kernel_size=3,
    attention_every=5,
    num_heads=4,
    dropout=0.2,
)
_PRIOR_TRAINING = TrainingConfig(
    batch_size=8,
    optimizer="muon",
    learning_rate=1e-3,
    warmup_steps=100,
    weight_decay=0.05,
    beta2=0.95,
    ema_decay=0.995,
    evaluations=15,
    patience=5,
)

_PAPER = VQVAEConfig(
    channels=3,
    height=256,
    width=256,
    strides=(2, 4),
    num_embeddings=(512, 512),
    embedding_dim=(64, 64),
    hidden_channels=128,
    residual_channels=64,
    num_residual_layers=2,
    joint_channels=64,
    upper_decoder="upsample",
)
_PAPER_PRIOR = PriorConfig(
    channels=512,
    residual_channels=1024,
    num_layers=20,
    kernel_size=5,
    num_heads=8,
    dropout=0.1,
    attention_dropout=0.1,
    condition_layers=20,
    position_logits=False,
    codebook_embeddings=False,
)
_PAPER_TRAINING = TrainingConfig(optimizer="adam", learning_rate=3e-4, beta2=0.999, clip_norm=0)
_PAPER_PRIOR_TRAINING = replace(_PAPER_TRAINING, ema_decay=0.9999)


def _times(factor: int, training: TrainingConfig) -> TrainingConfig:
    """Train longer by a factor."""
    assert training.max_steps is not None
    assert training.max_minutes is not None
    return replace(training, max_steps=factor * training.max_steps, max_minutes=factor * training.max_minutes)


_BRAIN = Preset(
    source="ours: 128x128 brain slices of about a hundred subjects, 67 minutes to samples on 2 CPU cores (AMX)",
    # A fine level at half the image's resolution holds the texture; few codes and narrow stacks keep it cheap.
    vqvae=replace(
        _OURS,
        strides=(2, 2, 2),
        num_embeddings=(512, 512, 128),
        embedding_dim=(64, 64, 8),
        rate_weight=(0.0, 1.0, 0.4),
        hidden_channels=(128, 96, 64),
        residual_channels=(64, 48, 32),
        level_dropout=0.4,
        ssim_weight=1.0,
        foreground_weight=5.0,
    ),
    # Limits in steps, so that every machine trains the same model; minutes are a bound that slow CPUs do not reach.
    vqvae_training=replace(_OURS_TRAINING, batch_size=8, max_steps=7500, max_minutes=480, evaluations=6),
    # Mirrored and shifted by whole pixels, which changes the codes and blurs nothing.
    augmentation=AugmentationConfig(augment_flip=0.5, augment_shift=0.03),
    copies=4,
    # A table of code frequencies knows the training images too well: each is counted in it. Fine levels run in patches.
    # Heads are nearly symmetric: drawn from both sides to the middle, fewer samples are lopsided (docs/log.md).
    priors=(
        replace(_PRIOR, mirrored=True, patch_channels=128, position_logits=False),
        replace(
            _PRIOR,
            channels=256,
            residual_channels=256,
            num_layers=8,
            attention_every=0,
            patch=2,
            patch_channels=128,
            position_logits=False,
        ),
        replace(_PRIOR, num_layers=6, attention_every=0, patch=2, dropout=0.1, position_logits=False),
    ),
    prior_training=(
        # Samples need this one alone; three times as long doubles those that pass for scans (docs/log.md).
        replace(_PRIOR_TRAINING, max_steps=7200, max_minutes=480, evaluations=12, guide_share=1 / 15),
        # For the middle level 1,000 steps reach nearly the NLL of 3,000 (docs/log.md).
        replace(_PRIOR_TRAINING, max_steps=1000, max_minutes=480, evaluations=4),
        replace(_PRIOR_TRAINING, max_steps=2000, max_minutes=480, evaluations=4),
    ),
    # Samples are painted from the top's codes alone: KID far below that of all levels' (docs/log.md).
    detail={"detail_share": 8 / 25, "detail_widths": (128, 96, 64)},
    # Fewer broken heads than with 0.002, more kinds of slices than with a colder top (docs/log.md).
    painted_sampling={"autoguidance": (2.0,), "min_p": (0.03,)},
    # KID of samples 0.18 in place of 0.82 (docs/log.md); chosen for this preset, not for those that are made of it.
    sampling={"autoguidance": (2.0, 4.0, 1.5), "min_p": (0.002, 0.002, 0.002)},
    # KID of reconstructions 0.05 in place of 0.26 at the same SSIM, in 300 steps (docs/results.md).
    sharpening={"sharpen_share": 1 / 17, "perceptual_weight": 0.2, "adversarial_weight": 0.0},
    size="128x128",
)

PRESETS: dict[str, Preset] = {
    "default": Preset(
        source="ours: two levels, for any data; without a limit, by patience",
        vqvae=_OURS,
        vqvae_training=_OURS_TRAINING,
        priors=(_PRIOR, _PRIOR),
        prior_training=(_PRIOR_TRAINING, _PRIOR_TRAINING),
    ),
    "brain128": _BRAIN,
    "brain128-long": replace(
        _BRAIN,
        source="ours: brain128 with larger batches, more of them, and more bits, for a GPU",
        sampling={},
        painted_sampling={},
        vqvae=replace(_BRAIN.vqvae, rate_weight=(0.0, 0.5, 0.3)),
        vqvae_training=replace(_BRAIN.vqvae_training, batch_size=16, max_steps=12000, max_minutes=800),
        # Judges take more of its paintings for real; KID does not see it (docs/log.md).
        detail={"detail_share": 15 / 32, "detail_widths": (128, 96, 64)},
        # Long enough to learn from slices that are turned and scaled besides.
        augmentation=AugmentationConfig(augment_flip=0.5, augment_shift=0.03, augment_rotate=6, augment_scale=0.06),
        copies=16,
        prior_training=tuple(
            replace(training, batch_size=32, max_steps=steps, max_minutes=600)
            for training, steps in zip(_BRAIN.prior_training, (12000, 12000, 14000), strict=True)
        ),
    ),
    "brain256": replace(
        _BRAIN,
        source="ours: the hierarchy of brain128 for slices of 256x256, such as those of OASIS; not yet run to the end",
        sampling={},
        painted_sampling={},
        vqvae=replace(_BRAIN.vqvae, height=256, width=256, strides=(2, 2, 4), num_embeddings=(512, 512, 512)),
        vqvae_training=_times(2, _BRAIN.vqvae_training),
        prior_training=tuple(_times(2, training) for training in _BRAIN.prior_training),
        size="256x256",
    ),
    "demo": Preset(
        source="ours: the 64x64 phantom, all stages in 4 minutes on 2 CPU cores",
        vqvae=replace(_OURS, height=64, width=64, hidden_channels=48, residual_channels=24),
        vqvae_training=replace(_OURS_TRAINING, max_minutes=1.75, evaluations=4),
        priors=(
            replace(_PRIOR, channels=64, residual_channels=64, num_layers=4, attention_every=2),
            replace(_PRIOR, channels=64, residual_channels=64, num_layers=4, attention_every=0, condition_layers=2),
        ),
        prior_training=(
            replace(_PRIOR_TRAINING, max_minutes=0.5, evaluations=3),
            replace(_PRIOR_TRAINING, max_minutes=0.75, evaluations=3),
        ),
        size="64x64",
    ),
    "imagenet256": Preset(
        source="Razavi et al. 2019 (arXiv 1906.00446); rate as in reimplementations, steps unverified",
        vqvae=_PAPER,
        vqvae_training=replace(_PAPER_TRAINING, batch_size=128, max_steps=2_207_444),
        priors=(
            replace(_PAPER_PRIOR, residual_channels=2048, attention_every=5, output_layers=20),
            _PAPER_PRIOR,
        ),
        prior_training=(
            replace(_PAPER_PRIOR_TRAINING, batch_size=1024, max_steps=1_600_000),
            replace(_PAPER_PRIOR_TRAINING, batch_size=512, max_steps=754_000),
        ),
        size="256x256",
        fit="cover",
    ),
    "ffhq1024": Preset(
        source="Razavi et al. 2019 (arXiv 1906.00446), three levels; most figures of FFHQ unverified",
        vqvae=replace(
            _PAPER,
            height=1024,
            width=1024,
            strides=(2, 2, 8),
            num_embeddings=(512, 512, 512),
            embedding_dim=(64, 64, 64),
        ),
        vqvae_training=replace(_PAPER_TRAINING, batch_size=128, max_steps=304_741),
        priors=(
            replace(_PAPER_PRIOR, residual_channels=2048, attention_every=5, dropout=0.5, attention_dropout=0.5),
            replace(_PAPER_PRIOR, attention_every=20, condition_layers=8, dropout=0.3, attention_dropout=0.3),
            replace(_PAPER_PRIOR, num_layers=10, condition_layers=8, dropout=0.25),
        ),
        prior_training=(
            replace(_PAPER_PRIOR_TRAINING, batch_size=1024, max_steps=237_000),
            replace(_PAPER_PRIOR_TRAINING, batch_size=512, max_steps=57_000),
            replace(_PAPER_PRIOR_TRAINING, batch_size=256, max_steps=270_000),
        ),
        size="1024x1024",
    ),
    "cifar10": Preset(
        source="Sonnet's VQ-VAE notebook (van den Oord et al. 2017, arXiv 1711.00937): one level; prior ours",
        vqvae=replace(
            _PAPER,
            height=32,
            width=32,
            strides=(4,),
            num_embeddings=(512,),
            embedding_dim=(64,),
            residual_channels=32,
        ),
        vqvae_training=replace(_PAPER_TRAINING, batch_size=32, max_steps=10_000),
        priors=(_PRIOR,),
        prior_training=(replace(_PRIOR_TRAINING, max_steps=20_000),),
        size="32x32",
    ),
}
"""The presets by name."""
