"""Copies that were shifted, mirrored, re-lit or blurred are found again."""

import numpy as np
import pytest
import torch

from vqvae2.metrics import aligned_nearest, gaussian_blur


def smooth(count: int, size: int = 48, seed: int = 0, channels: int = 1) -> torch.Tensor:
    """Blobs on a black background, as heads are: (N, C, H, W) in [-1, 1]."""
    noise = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
    place = torch.linspace(-1, 1, size)
    inside = (place[:, None] ** 2 + place**2 < 0.5).float()
    blurred = gaussian_blur(noise, 2.5)
    return (blurred / blurred.std() * 0.3).clamp(-0.9, 0.9) * inside + inside - 1


def moved(images: torch.Tensor, down: int, right: int) -> torch.Tensor:
    return images.roll((down, right), (2, 3))


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda x: x, 0.9999),
        (lambda x: moved(x, 2, -2), 0.9999),
        (lambda x: x * 0.7 - 0.2, 0.9999),
        (lambda x: x.flip(-1), 0.9999),
        (lambda x: moved(x.flip(-1), -1, 3), 0.9999),
        (lambda x: gaussian_blur(x, 1.0), 0.97),
    ],
)
def test_changed_copies_are_found_in_stored_pixels(change, least):
    train = smooth(60)
    stored = ((train + 1) * 127.5).round().byte().numpy()
    chosen = torch.arange(0, 60, 5)
    found = aligned_nearest(change(train[chosen]), stored)
    assert found.index.tolist() == chosen.tolist()
    assert found.correlation.min() > least
    others = aligned_nearest(smooth(60, seed=1), stored)
    assert others.correlation.max() < found.correlation.min()


def test_it_equals_the_best_of_all_shifts_by_loops():
    train, queries = smooth(3, 24), smooth(2, 24, seed=1)
    found = aligned_nearest(queries, train, reach=2, candidates=6)

    def correlation(a, b):
        return float(np.corrcoef(a.flatten(), b.flatten())[0, 1])

    for i, query in enumerate(queries):
        best = max(
            (correlation(query, moved(other[None], down, right)[0]), j, flipped)
            for j, image in enumerate(train)
            for flipped, other in ((False, image), (True, image.flip(-1)))
            for down in range(-2, 3)
            for right in range(-2, 3)
        )
        assert float(found.correlation[i]) == pytest.approx(best[0], abs=1e-5)
        assert (int(found.index[i]), bool(found.mirrored[i])) == best[1:]


def test_colours_16_bit_small_and_empty_inputs_work_and_other_shapes_are_refused():
    train = smooth(4, 12, channels=3)
    stored = ((train + 1) * 30000).numpy().astype(np.uint16)
    assert aligned_nearest(train, stored).index.tolist() == [0, 1, 2, 3]
    assert len(aligned_nearest(train[:0], stored).index) == 0
    flat = aligned_nearest(torch.zeros(1, 3, 12, 12), stored)
    assert float(flat.correlation[0]) == 0
    for queries, references in ((train, train[:0]), (train, train[..., :6]), (train[0], train)):
        with pytest.raises(ValueError, match="aligned_nearest"):
            aligned_nearest(queries, references)
