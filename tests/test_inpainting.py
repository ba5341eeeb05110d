"""Holes in images: which codes depend on them, and how what was drawn is put into them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.inpainting import blend, known_codes
from vqvae2.stages import complete, sample

pytest_plugins = ["tiny_run_fixtures"]


@pytest.mark.parametrize(
    "where", [(slice(4, 10), slice(5, 12)), (slice(0, 8), slice(0, 16)), (slice(9, 16), slice(10, 16))]
)
def test_a_constant_difference_leaves_no_seam(where):
    torch.manual_seed(0)
    image = torch.rand(2, 16, 16) - 0.5
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[where] = True
    made = (image + torch.tensor([0.2, -0.1])[:, None, None]).expand(3, -1, -1, -1)
    found = blend(made, image, hole)
    torch.testing.assert_close(found, image.expand(3, -1, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(found[..., ~hole], image.expand(3, -1, -1, -1)[..., ~hole])


def test_a_difference_at_one_side_fades_into_the_hole():
    image, hole = torch.zeros(1, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    hole[3:9, 3:9] = True
    made = torch.zeros(1, 1, 12, 12)
    made[..., 2, :] = 0.5
    found = -blend(made, image, hole)[0, 0, 3:9, 5]
    assert (found[:-1] > found[1:]).all()
    assert 0.2 < float(found[0]) < 0.5


def test_a_hole_without_an_edge_takes_what_was_made():
    made = torch.rand(1, 1, 8, 8)
    assert torch.equal(blend(made, torch.zeros(1, 8, 8), torch.ones(8, 8, dtype=torch.bool)), made)
    assert torch.equal(blend(made, torch.zeros(1, 8, 8), torch.zeros(8, 8, dtype=torch.bool)), torch.zeros_like(made))


def test_known_codes_do_not_depend_on_the_hole(tiny_vqvae):
    torch.manual_seed(0)
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    hole = torch.zeros(6, 1, 16, 16, dtype=torch.bool)
    hole[:, :, 9:13, 2:7] = True
    codes, known = known_codes(tiny_vqvae, images, hole)
    whole = tiny_vqvae.encode(images)
    for level, own, same in zip(codes, whole, known, strict=True):
        cell = 16 // level.shape[1]
        assert not same[:, 9 // cell : -(-13 // cell), 2 // cell : -(-7 // cell)].any()
        assert float((level == own)[same].float().mean()) > 0.9
    assert all(same.any() for same in known[1:])
    other = torch.where(hole, torch.rand_like(images), images)
    again, still = known_codes(tiny_vqvae, other, hole)
    assert all(torch.equal(a, b) for a, b in zip((*codes, *known), (*again, *still), strict=True))


@pytest.fixture
def picture(tmp_path):
    """A slice of the phantom's size, and a mask of a square in it."""
    random = np.random.default_rng(0)
    image = np.zeros((32, 32), np.uint8)
    image[6:26, 6:26] = random.integers(60, 200, (20, 20))
    mask = np.zeros((32, 32), np.uint8)
    mask[10:18, 12:22] = 255
    for name, pixels in (("image", image), ("mask", mask), ("none", mask * 0), ("all", mask * 0 + 255)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.fromarray(mask[:30]).save(tmp_path / "other.png")
    Image.fromarray(image).resize((64, 64)).save(tmp_path / "large.png")
    return tmp_path


def test_an_image_is_completed(run, picture, call, refused):
    image, mask, out = picture / "image.png", picture / "mask.png", picture / "out"
    flags = ("--run", run, "--complete", image, "--particles", 2, "--sweeps", 1, "--num", 3)
    told = call(sample.main, *flags, "--mask", mask, "--out", out)
    assert told.code == 0, told.err
    assert "codes to draw: top" in told.out
    original, hole = np.asarray(Image.open(image)), np.asarray(Image.open(mask)) > 0
    made = [np.asarray(Image.open(out / f"{i:05d}.png")) for i in range(3)]
    for one in made:
        np.testing.assert_array_equal(one[~hole], original[~hole])
        assert (one[hole] != original[hole]).any()
    assert any((made[0] != other).any() for other in made[1:])
    about = json.loads((out / "completion.json").read_text())
    assert about["missing_pixels"] == hole.sum()
    assert len(about["log_evidence"]) == 3
    assert (np.asarray(Image.open(out / "spread.png"))[~hole] == 0).all()
    assert "written already" in refused(sample.main, *flags, "--mask", mask, "--out", out)
    told = call(sample.main, *flags, "--keep-box", "0,0,32,20", "--out", out, "--overwrite", "--label", "healthy")
    assert told.code == 0, told.err
    np.testing.assert_array_equal(np.asarray(Image.open(out / "00000.png"))[:, :20], original[:, :20])


def test_a_completion_that_was_interrupted_is_written_by_the_same_command(run, picture, call, refused, monkeypatch):
    out = picture / "out"
    flags = ("--run", run, "--complete", picture / "image.png", "--mask", picture / "mask.png", "--out", out)
    few = ("--particles", 1, "--sweeps", 0, "--num", 1)
    with monkeypatch.context() as patch:
        patch.setattr(complete, "grid", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(sample.main, *flags, *few).code != 0
    assert (out / "00000.png").exists()
    assert not (out / "completion.json").exists()
    assert call(sample.main, *flags, *few).code == 0
    about = json.loads((out / "completion.json").read_text())
    assert about["largest_spread"] == 0  # of one completion
    assert "this is a file" in refused(sample.main, *flags[:-1], picture / "mask.png", *few)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ((), "it is unclear which part of the image is missing"),
        (("--mask", "mask.png", "--keep-box", "0,0,4,4"), "it is unclear which part of the image is missing"),
        (("--mask", "none.png"), "nothing of the image is missing"),
        (("--mask", "all.png"), "all of the image is missing"),
        (("--mask", "other.png"), "the mask has 30x32 pixels, the image 32x32"),
        (("--mask", "absent.png"), "the mask cannot be read"),
        (("--keep-box", "0,0,40,40"), "is not in the image"),
        (("--keep-box", "0,0,4"), "is no box"),
        (("--keep-box", "0,0,4,4", "--particles", "0"), "--particles is below 1"),
        (("--keep-box", "0,0,4,4", "--temperature", "0.9"), "--temperature does not go with --complete"),
        (("--keep-box", "0,0,4,4", "--label", "old"), "diagnosis has no class old"),
    ],
)
def test_bad_input_of_a_completion(run, picture, refused, monkeypatch, flags, line):
    monkeypatch.chdir(picture)
    assert line in refused(sample.main, "--run", run, "--complete", "image.png", *flags)
    assert not (run / "completions").exists()


def test_a_mask_has_the_size_of_its_image_not_of_the_models(run, picture, call, refused):
    flags = ("--run", run, "--complete", picture / "large.png", "--particles", 1, "--sweeps", 0, "--num", 1, "--mask")
    assert "the mask has 32x32 pixels, the image 64x64" in refused(sample.main, *flags, picture / "mask.png")
    Image.open(picture / "mask.png").resize((64, 64)).save(picture / "mask-large.png")
    assert call(sample.main, *flags, picture / "mask-large.png", "--out", picture / "out").code == 0


def test_other_flags_of_completions(run, refused):
    assert "--sweeps is for completions" in refused(sample.main, "--run", run, "--sweeps", 3)
    assert "there is no such image" in refused(
        sample.main, "--run", run, "--complete", run / "no.png", "--keep-box", "0,0,4,4"
    )


def test_a_label_is_swept(run, tmp_path, call, refused):
    out = tmp_path / "sweep"
    told = call(sample.main, "--run", run, "--sweep", "diagnosis", "--num", 2, "--out", out, "--chunk-size", 4)
    assert told.code == 0, told.err
    about = json.loads((out / "sweep.json").read_text())
    assert [row[0] for row in about["labels"]] == [0, 1, 0, 1]
    assert sorted(path.name for path in out.glob("0*.png")) == [f"{i:05d}-{k:03d}.png" for i in (0, 1) for k in (0, 1)]
    assert "there is no label age" in refused(sample.main, "--run", run, "--sweep", "age")
    assert "which is swept" in refused(sample.main, "--run", run, "--sweep", "diagnosis", "--label", "healthy")
