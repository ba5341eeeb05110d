"""Which of the samples that were drawn are kept: the surest of each class, or the best of several candidates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.classifier import Classifier, probabilities
from vqvae2.critic import Critic
from vqvae2.errors import UserError
from vqvae2.metrics import check_features
from vqvae2.stages.commands import command
from vqvae2.stages.common import RunFolder

__all__ = ["BestOf", "Choice", "Rejection", "best_of", "hashes", "rejection"]


class Choice(Protocol):
    """A way to choose among samples."""

    @property
    def alike(self) -> int:
        """How many samples in a row are drawn for the same labels."""

    def drawn(self, num: int) -> int:
        """Return how many samples to draw so that ``num`` are kept."""

    def scores(self, images: Tensor, label: Tensor) -> Tensor:
        """Images (B, C, H, W) and their labels (B, A) -> (B,), higher for those that are rather kept."""

    def rows(self, scores: Tensor, label: Tensor, num: int) -> list[int]:
        """Choose among samples.

        Args:
            scores: (M,) of all that were drawn.
            label: (M, A) int64, -1 missing.
            num: how many are kept.

        Returns:
            The numbers of those that are kept, in order.
        """


@dataclass(frozen=True)
class Rejection:
    """Keep of each class the samples of which a classifier is surest (Razavi et al. 2019), the same share of each.

    Args:
        classifier: of one of the labels.
        column: which of them.
        share: of the samples that are left out, in (0, 1).
    """

    classifier: Classifier
    column: int
    share: float
    alike = 1

    def drawn(self, num: int) -> int:
        """As of `Choice`."""
        return math.ceil(round(num / (1 - self.share), 6))

    def scores(self, images: Tensor, label: Tensor) -> Tensor:
        """Probability of each sample's own class; of the most probable one where it has none."""
        judged = probabilities(self.classifier, lambda rows: images[rows], len(images))
        classes = label[:, self.column]
        own = judged.gather(1, classes.clamp_min(0)[:, None])[:, 0]
        return torch.where(classes >= 0, own, judged.amax(1))

    def rows(self, scores: Tensor, label: Tensor, num: int) -> list[int]:
        """As of `Choice`: of each class the same share, as near as whole numbers allow."""
        classes = label[:, self.column]
        groups = [(classes == k).nonzero()[:, 0] for k in classes.unique().tolist()]
        exact = [len(group) * num / len(classes) for group in groups]
        quotas = [int(value) for value in exact]
        for i in sorted(range(len(groups)), key=lambda i: quotas[i] - exact[i])[: num - sum(quotas)]:
            quotas[i] += 1
        chosen = [
            group[scores[group].argsort(descending=True, stable=True)[:quota]]
            for group, quota in zip(groups, quotas, strict=True)
        ]
        return sorted(torch.cat(chosen).tolist())


@dataclass(frozen=True)
class BestOf:
    """Keep of each ``alike`` candidates, drawn for the same labels, the one that a critic takes most for real.

    Args:
        critic: of images.
        alike: candidates for each image.
    """

    critic: Critic
    alike: int

    def drawn(self, num: int) -> int:
        """As of `Choice`."""
        return num * self.alike

    def scores(self, images: Tensor, label: Tensor) -> Tensor:
        """As of `Choice`."""
        return self.critic(images)

    def rows(self, scores: Tensor, label: Tensor, num: int) -> list[int]:
        """As of `Choice`."""
        best = scores[: num * self.alike].view(num, self.alike).argmax(1)
        return (best + torch.arange(num) * self.alike).tolist()


def rejection(
    run: RunFolder,
    share: float,
    folder: Path | None,
    attributes: Sequence[tuple[str, tuple[str, ...]]],
    channels: int,
    device: torch.device,
) -> Rejection:
    """Load the classifier for `Rejection`.

    Args:
        run: whose classifier is taken where no folder is named.
        share: of the samples to leave out.
        folder: of the classifier.
        attributes: of the priors.
        channels: of the samples.
        device: where it works.

    Raises:
        UserError: the share is none, or there is no classifier of these labels and images.
    """
    if not 0 < share < 1:
        raise UserError(f"--reject {share:g} is no share", how="Give 0 or more, and less than 1")
    folder = folder or _only_classifier(run)
    classifier = Classifier.from_pretrained(folder, device)
    known = dict(attributes)
    name, classes = classifier.config.attribute, classifier.config.classes
    if known.get(name) != classes:
        raise UserError(
            f"the classifier is of {name} ({', '.join(classes)}), which is no label of the priors",
            folder,
            f"Their labels are {', '.join(known) or 'none'}",
        )
    if classifier.config.channels != channels:
        raise UserError(
            f"the classifier takes images of {classifier.config.channels} channels, the samples have {channels}", folder
        )
    return Rejection(classifier, list(known).index(name), share)


def _only_classifier(run: RunFolder) -> Path:
    found = sorted(path.parent for path in run.path.glob("classifier-*/config.json"))
    if len(found) == 1:
        return found[0]
    way_out = f"Run {command('evaluate', '--run', run.path, '--classifier', 'ATTRIBUTE')}"
    if found:
        raise UserError(f"there are {len(found)} classifiers", run.path, f"Give --classifier {found[0]}, or another")
    raise UserError("there is no classifier by which to reject samples", run.path, way_out)


def best_of(run: RunFolder, candidates: int, of_models: Mapping[str, Any], exported: bool) -> BestOf:
    """Load the run's critic for `BestOf`.

    Args:
        run: whose critic it is.
        candidates: for each image, > 1.
        of_models: hashes of the models that draw (`sample_folder.hashes_of`).
        exported: the models are a copy, whose hashes the critic cannot know.

    Raises:
        UserError: there is no critic, it is of other models, or the network that it needs is not there.
    """
    way_out = f"Run {command('evaluate', '--run', run.path, '--critic')}"
    if not checkpoint.has_model(run.critic):
        raise UserError("there is no critic by which to choose samples", run.critic, way_out)
    check_features()
    trained_on = checkpoint.load_config(run.critic, kind="critic").get("models")
    if not exported and trained_on != of_models:
        raise UserError("this critic was trained on samples of other models", run.critic, way_out)
    return BestOf(Critic.from_pretrained(run.critic), candidates)


def hashes(run: RunFolder, choice: Choice, classifier: Path | None) -> dict[str, str]:
    """Return the SHA-256 of the model that chooses, for samples.json."""
    if isinstance(choice, BestOf):
        return {"critic_sha256": checkpoint.sha256_of(run.critic)}
    return {"classifier_sha256": checkpoint.sha256_of(classifier or _only_classifier(run))}
