"""Folders as they are downloaded, with the real naming, through all stages."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tiny_runs import PRIOR_FLAGS, VQVAE_FLAGS

from vqvae2 import CodeStore
from vqvae2.covariates import number_values
from vqvae2.data import phantom
from vqvae2.stages import evaluate, extract_codes, sample, train_prior, train_vqvae

pytest_plugins = ["tiny_run_fixtures"]

SIZE = (32, 32)


def slice_of(index: int) -> np.ndarray:
    return phantom.render(0, index, SIZE)[0]


def oasis(folder: Path) -> list[str]:
    """OASIS slices as in the keras folders, masks beside them."""
    case = 0
    for part, count in (("train", 8), ("validate", 3), ("test", 3)):
        for kind in ("slices", "seg"):
            place = folder / f"keras_png_{kind}_{part}"
            place.mkdir(parents=True)
            for i in range(count):
                for k in range(4):
                    name = f"{'case' if kind == 'slices' else 'seg'}_{case + i:03d}_slice_{k}.nii.png"
                    pixels = slice_of(4 * (case + i) + k)
                    Image.fromarray(pixels if kind == "slices" else (pixels > 99).astype(np.uint8)).save(place / name)
        case += count
    return []


def adni(folder: Path) -> list[str]:
    """ADNI slices as JPEG, in split and diagnosis folders, the patient before the underscore."""
    patient = 388206
    for part, count in (("train", 10), ("test", 4)):
        for i in range(count):
            place = folder / "AD_NC" / part / ("AD", "NC")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            for k in range(78, 82):
                Image.fromarray(slice_of(patient + k)).save(place / f"{patient}_{k}.jpeg", quality=95)
            patient += 11
    return []


def bids(folder: Path) -> list[str]:
    """A BIDS tree with a table of people."""
    lines = ["participant_id\tage\tsex"]
    for i in range(12):
        who = f"sub-{i:02d}"
        voxels = np.stack([slice_of(8 * i + k)[::-1].T for k in range(6)], 2)
        (folder / who / "anat").mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 4, 1])), folder / who / "anat" / f"{who}_T1w.nii.gz")
        lines.append(f"{who}\t{30 + 5 * i}\t{'FM'[i % 2]}")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return ["--labels", "participants.tsv:sex,age", "--numbers", "age"]


TREES = {
    oasis: ("train/val/test folders", {}, [], {"train": 7 * 4, "val": 3 * 4}),
    adni: ("class folders", {"class": ("AD", "NC")}, ["--label", "AD"], {"test": 4 * 4}),
    bids: ("BIDS tree", {"sex": ("F", "M"), "age": number_values(30, 85)}, ["--label", "sex=F,age=47.5"], {}),
}


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_a_tree_goes_through_all_stages(tmp_path, call, monkeypatch, make):
    monkeypatch.setenv("VQVAE2_CACHE", str(tmp_path / "cache"))
    words, attributes, label, counts = TREES[make]
    data, run = tmp_path / "data", tmp_path / "run"
    more = make(data)
    flags = list(VQVAE_FLAGS)
    flags[flags.index("--data") + 1] = str(data)

    def done(main: object, *argv: object) -> str:
        ended = call(main, "--run", run, *argv)
        assert ended.code == 0, ended.err
        return ended.out

    told = done(train_vqvae.main, *flags, *more)
    assert words in told
    done(extract_codes.main, "--allow-collapse")
    store = CodeStore(run / "codes")
    assert store.attributes == attributes
    for split, count in counts.items():
        assert len(store.indices(split)) == count
    by_split = {split: {store.subjects[i] for i in store.indices(split)} for split in set(store.splits)}
    assert sum(map(len, by_split.values())) == len(set().union(*by_split.values())), "a person is in two splits"
    for level in ("top", "bottom"):
        done(train_prior.main, "--level", level, *PRIOR_FLAGS)
    done(sample.main, "--num", 2, "--chunk-size", 2, *label)
    assert json.loads((run / "samples" / "samples.json").read_text())["labels"] is not None
    done(evaluate.main)
    assert (run / "report" / "index.html").is_file()
    if "--numbers" in more:
        done(sample.main, "--sweep", "age=35:75:20", "--num", 2, "--out", tmp_path / "ages")
        swept = json.loads((tmp_path / "ages" / "sweep.json").read_text())["labels"]
        ages = [store.attributes["age"][age] for _, age in swept]
        assert ages == ["35", "55", "75"] * 2
