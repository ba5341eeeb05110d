"""Changed training images and near duplicates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PRIOR_FLAGS, VQVAE_FLAGS

from vqvae2 import CodeStore
from vqvae2.batches import load_batches
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, augment, open_data
from vqvae2.data.duplicates import nearly_equal, thumbnail
from vqvae2.errors import UserError
from vqvae2.presets import PRESETS
from vqvae2.stages import extract_codes, train_prior, train_vqvae
from vqvae2.stages.common import RunFolder

pytest_plugins = ["tiny_run_fixtures"]

ALL = AugmentationConfig(augment_shift=0.1, augment_rotate=20, augment_scale=0.2, augment_flip=0.5, augment_light=0.3)


@pytest.fixture(scope="module")
def phantom():
    return open_data(DataConfig(data="phantom", phantom_images=40, size="48x64")).splits["train"]


def test_nothing_is_changed_without_a_range(phantom):
    x = phantom.at([0, 1])
    assert augment(x, AugmentationConfig(), 0, 0, [0, 1]) is x


def changed(images: AugmentedSet, rows: list[int], epoch: int) -> torch.Tensor:
    return images.unit(images.at_epoch(rows, epoch))


def test_draws_depend_on_seed_epoch_and_row_alone(phantom):
    images = AugmentedSet(phantom, ALL, seed=3)
    both, alone = changed(images, [4, 7], 2), changed(images, [7], 2)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(alone, changed(images, [7], 3), atol=0.01)
    assert not torch.allclose(alone, changed(AugmentedSet(phantom, ALL, seed=4), [7], 2), atol=0.01)
    assert both.min() >= -1
    assert both.max() <= 1


@pytest.mark.parametrize("config", [AugmentationConfig(), AugmentationConfig(augment_flip=0.5), ALL])
def test_batches_hold_stored_integers_and_become_the_changed_images(phantom, config):
    images, rows = AugmentedSet(phantom, config, seed=3), [4, 7, 9]
    batch = images.at_epoch(rows, 2)
    assert batch["image"].dtype == torch.uint8
    drawn = sum(value.numel() for value in batch["changes"].values())
    assert drawn <= 8 * len(rows)
    whole = phantom.at(rows)
    assert torch.equal(images.unit(batch), augment(whole, config, 3, 2, rows))
    wide = replace(phantom, images=phantom.images.astype(np.uint16) * 257, value_range=(0.0, 65535.0))
    deep = AugmentedSet(wide, config, seed=3)
    torch.testing.assert_close(deep.unit(deep.at_epoch(rows, 2)), images.unit(batch), atol=1e-5, rtol=0)


def test_loading_gives_each_epoch_its_own_draws_with_and_without_workers(phantom):
    images = AugmentedSet(phantom, ALL, seed=0)
    per_epoch = len(phantom) // 8
    seen = []
    for workers in (0, 2):
        batches = load_batches(images, 8, 0, 0, torch.device("cpu"), workers)
        seen.append([next(batches) for _ in range(2 * per_epoch)])
    for i, (a, b) in enumerate(zip(*seen, strict=True)):
        assert torch.equal(images.unit(a), images.unit(b))
        expected = changed(images, a["index"].tolist(), i // per_epoch)
        torch.testing.assert_close(images.unit(a), expected, rtol=0, atol=1e-6)
    resumed = next(load_batches(images, 8, 0, per_epoch + 1, torch.device("cpu")))
    assert torch.equal(images.unit(resumed), images.unit(seen[0][per_epoch + 1]))


def spot(row: int, column: int) -> torch.Tensor:
    x = torch.full((1, 1, 41, 61), -1.0)
    x[0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1
    return x


def centre(x: torch.Tensor) -> tuple[float, float]:
    light = (x[0, 0] + 1).double()
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(61.0), indexing="ij")
    return float((light * rows).sum() / light.sum()), float((light * columns).sum() / light.sum())


def test_shifts_stay_in_their_range_and_reach_its_ends():
    config = AugmentationConfig(augment_shift=0.1)
    moved = np.array([centre(augment(spot(20, 30), config, 0, epoch, [0])) for epoch in range(200)]) - (20, 30)
    assert (np.abs(moved) <= np.array([4.1, 6.1]) + 0.1).all()
    assert (np.abs(moved).max(0) > np.array([3.7, 5.6])).all()


def test_shifts_are_whole_pixels_and_blur_nothing():
    image = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config = AugmentationConfig(augment_shift=0.05)  # 2 and 3 pixels
    found = set()
    for epoch in range(80):
        moved = augment(image, config, 0, epoch, [0])[..., 4:-4, 4:-4]
        down, right = next(
            (y, x)
            for y in range(-2, 3)
            for x in range(-3, 4)
            if torch.allclose(moved, image.roll((y, x), (2, 3))[..., 4:-4, 4:-4], atol=1e-3)
        )
        found.add((down, right))
    assert {y for y, _ in found} == {-2, -1, 0, 1, 2}
    assert {x for _, x in found} == {-3, -2, -1, 0, 1, 2, 3}
    small = AugmentationConfig(augment_shift=0.001)  # less than a pixel
    assert any((augment(image, small, 0, epoch, [0]) - image).abs().max() > 0.1 for epoch in range(9))


def test_rotations_keep_the_distance_from_the_centre_in_pixels():
    config = AugmentationConfig(augment_rotate=30)
    ends = np.array([centre(augment(spot(20, 45), config, 0, epoch, [0])) for epoch in range(100)]) - (20, 30)
    assert np.hypot(*ends.T) == pytest.approx(15, abs=0.3)
    angles = np.degrees(np.arctan2(*ends.T))
    assert np.abs(angles).max() == pytest.approx(30, abs=1.5)


def test_scale_flip_and_light():
    far = [
        abs(centre(augment(spot(20, 45), AugmentationConfig(augment_scale=0.2), 0, e, [0]))[1] - 30) for e in range(99)
    ]
    assert min(far) == pytest.approx(15 / 1.2, abs=0.4)
    assert max(far) == pytest.approx(15 * 1.2, abs=0.4)
    sides = [centre(augment(spot(20, 45), AugmentationConfig(augment_flip=0.5), 0, e, [0]))[1] for e in range(99)]
    assert {round(side) for side in sides} == {15, 45}
    grey = torch.zeros(1, 1, 41, 61)
    lit = [float(augment(grey, AugmentationConfig(augment_light=0.3), 0, e, [0])[0, 0, 20, 30]) for e in range(99)]
    assert min(lit) < -0.2
    assert max(lit) > 0.2
    black = augment(torch.full((1, 1, 41, 61), -1.0), ALL, 0, 0, [0])
    assert (black == -1).all()


@pytest.mark.parametrize("wrong", [{"augment_shift": 0.6}, {"augment_rotate": -1}, {"augment_light": 1}])
def test_ranges_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        AugmentationConfig(**wrong)


def test_copies_join_the_prior_s_training_and_nothing_else(tmp_path, call, refused):
    run = tmp_path / "run"
    assert call(train_vqvae.main, "--run", run, *VQVAE_FLAGS, "--augment-shift", 0.1).code == 0
    assert call(extract_codes.main, "--run", run, "--allow-collapse", "--copies", 2).code == 0
    store = CodeStore(run / "codes")
    train, copies = store.indices("train"), store.indices("copies")
    assert len(copies) == 2 * len(train)
    assert {store.keys[i].split("#")[0] for i in copies} == {store.keys[i] for i in train}
    assert {store.subjects[i] for i in copies} == {store.subjects[i] for i in train}
    assert (store.read(train)[1] != store.read(copies[: len(train)])[1]).any()
    ended = call(train_prior.main, "--run", run, "--level", "top", *PRIOR_FLAGS)
    assert ended.code == 0
    assert f"copies {len(copies)}" in ended.out


def test_copies_and_changes_that_a_preset_brings_are_the_run_s(tmp_path, call):
    run = tmp_path / "run"
    flags = [*VQVAE_FLAGS, "--preset", "brain128", "--max-steps", 2]  # its channels are for three levels
    flags += ["--num-residual-layers", 1, "--strides", 2, 2, "--rate-weight", 0]
    assert call(train_vqvae.main, "--run", run, *flags).code == 0
    record = RunFolder(run).read()["train_vqvae"]
    assert (record["copies"], record["augmentation"]["augment_flip"]) == (4, 0.5)
    assert call(train_vqvae.main, "--run", run, "--resume", "--max-steps", 3).code == 0
    assert RunFolder(run).read()["train_vqvae"]["copies"] == 4
    assert call(extract_codes.main, "--run", run, "--allow-collapse").code == 0
    store = CodeStore(run / "codes")
    assert len(store.indices("copies")) == 4 * len(store.indices("train"))
    unchanged = [part for name in ("flip", "shift", "rotate", "scale") for part in (f"--augment-{name}", 0)]
    still = call(extract_codes.main, "--run", run, "--allow-collapse", "--overwrite", *unchanged)
    assert still.code == 0, still.err
    assert not CodeStore(run / "codes").indices("copies")


def test_slices_from_the_side_are_not_mirrored_by_a_preset(tmp_path, call):
    flags = [*VQVAE_FLAGS, "--preset", "brain128", "--slice-axis", "sagittal", "--strides", 2, 2, "--rate-weight", 0]
    run = RunFolder(tmp_path / "run")
    assert call(train_vqvae.main, "--run", run.path, *flags).code == 0
    kept = run.read()["train_vqvae"]["augmentation"]
    assert (kept["augment_flip"], kept["augment_shift"]) == (0, 0.03)
    assert call(extract_codes.main, "--run", run.path, "--allow-collapse", "--copies", 0).code == 0
    assert call(train_prior.main, "--run", run.path, "--level", "top", *PRIOR_FLAGS).code == 0
    assert not run.read()["train_prior_top"]["model"]["mirrored"]
    assert PRESETS["brain128"].prior(0)[0].mirrored


def test_copies_of_unchanged_images_are_refused(run, refused):
    assert "--augment" in refused(extract_codes.main, "--run", run, "--overwrite", "--copies", 2)


def slices(count: int) -> list[np.ndarray]:
    data = open_data(DataConfig(data="phantom", phantom_images=count, size="96x96"))
    return [image[0] for images in data.splits.values() for image in images.images]


def test_near_duplicates_are_found_and_others_are_not():
    some = slices(60)
    thumbs = np.stack([thumbnail(image) for image in some])
    assert not [pair for pair in nearly_equal(thumbs[:30], thumbs[30:])]
    brighter = np.clip(some[3].astype(float) * 1.05 + 2, 0, 255).astype(np.uint8)
    noisy = np.clip(some[4] + np.random.default_rng(0).normal(0, 3, some[4].shape), 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(some[5]).resize((80, 80), Image.Resampling.BILINEAR))
    constant = np.full((96, 96), 9, np.uint8)
    asked = np.stack([thumbnail(image) for image in (brighter, noisy, smaller, constant)])
    assert nearly_equal(asked, thumbs) == [(0, 3), (1, 4), (2, 5)]


def test_near_duplicates_across_splits_are_reported(tmp_path):
    for i, image in enumerate(slices(20)):
        part = "val" if i >= 16 else "train"
        (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / part / f"s{i:02d}_1.png")
    Image.fromarray(slices(20)[2]).save(tmp_path / "val" / "t00_1.jpg", quality=90)
    notes = open_data(DataConfig(data=str(tmp_path))).notes
    assert [note for note in notes if "nearly copies" in note] == [
        "1 images are nearly copies of images of another split (1 of val in train), such as val/t00_1.jpg of "
        "train/s02_1.png"
    ]
