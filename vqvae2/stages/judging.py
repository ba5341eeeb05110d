"""The critic of a run: trained on its samples, it chooses among the candidates of later ones."""

from typing import Any

import torch

from vqvae2 import report
from vqvae2.critic import train_critic
from vqvae2.errors import UserError
from vqvae2.metrics import check_features, features
from vqvae2.stages.commands import command
from vqvae2.stages.common import RunFolder
from vqvae2.stages.compared import Beside
from vqvae2.stages.evaluated import Models

__all__ = ["check_critic", "critic_figures"]

_LEAST = 32  # samples on which a critic is trained
_MOST = 1024  # training images of which reconstructions are made


def check_critic(run: RunFolder, models: Models) -> None:
    """Raise UserError where no critic can be trained, before the work."""
    check_features()
    if models.store is None or not models.complete:
        raise UserError("a critic needs the run's codes and the priors of all levels", run.path, "Leave --critic out")
    found_set = report.read_samples(run.path / "samples", models.vqvae, models.hashes)
    if found_set is not None and found_set.how.get("best_of", 1) > 1:
        again = command("sample", "--run", run.path, "--overwrite")
        raise UserError("these samples were chosen by a critic", found_set.folder, f"To train another, {again}")


def critic_figures(
    run: RunFolder, models: Models, found_set: "report.SampleSet | None", beside: Beside
) -> dict[str, Any]:
    """Train the run's critic, ``critic/``, on samples and on reconstructions of training images.

    Args:
        run: where it lies.
        models: of the run, with codes.
        found_set: its samples; None: there are none.
        beside: held-out images and their reconstructions.

    Returns:
        ``samples`` and ``reconstructions``, on how many it was trained, and ``right``: the share of pairs of a sample and a
        held-out reconstruction in which it prefers the latter, for samples that it was not trained on (by halves).

    Raises:
        UserError: there are too few samples.
    """
    if found_set is None or len(found_set) < _LEAST:
        have = 0 if found_set is None else len(found_set)
        raise UserError(f"a critic needs {_LEAST} samples, there are {have}", run.path / "samples", "Sample more")
    assert models.store is not None
    train = models.store.indices("train")
    codes = models.store.read([train[i] for i in report.spread_out(len(train), _MOST)])
    real = features(report.decode(models.vqvae, [torch.from_numpy(level.astype("int64")) for level in codes]))
    made, held_out = features(report.decode(models.vqvae, found_set.codes)), features(beside.again)
    right = []
    for side in (0, 1):
        critic = train_critic(made[1 - side :: 2], real)
        right.append((critic.score(made[side::2])[:, None] < critic.score(held_out)).double().mean())
    hashes = {name: models.hashes[name] for name in ("vqvae_sha256", "prior_sha256")}
    train_critic(made, real).save_pretrained(run.critic, {"models": hashes})
    return {"samples": len(made), "reconstructions": len(real), "right": float(torch.stack(right).mean())}
