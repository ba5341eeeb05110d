"""People are torn over two splits by no tree of a grammar without a word: forms of names times people times visits."""

from collections import defaultdict
from pathlib import Path

import pytest

from vqvae2.data import DataConfig, layout, opening
from vqvae2.data.sources import Found

PEOPLE = {
    "1": ["1", "2", "5", "8", "13", "21", "34", "40"],
    "10023": [str(10023 + 37 * p) for p in range(8)],
    "anna": ["anna", "ben", "carl", "dora", "emil", "finn", "gina", "hugo"],
    "smith_john": [
        "smith_john",
        "miller_eva",
        "jones_amy",
        "brown_tom",
        "davis_kim",
        "moore_ian",
        "clark_zoe",
        "ray_max",
    ],
    "S001": [f"S{p:03}" for p in range(1, 9)],
    "a3f9c1": ["a3f9c1", "b27de0", "0c9d2f", "ff10a2", "9ab3c4", "77e0d1", "c0ffee", "12ab34"],
}
VISITS = {
    "scan1": ["scan1", "scan2"],
    "date": ["2019-01-03", "2020-02-05"],
    "1st": ["1st", "2nd"],
    "scan_a": ["scan_a", "scan_b"],
    "rest": ["rest", "task"],
}
KINDS = {"T1": ["T1", "T2"], "axial": ["axial", "sagittal"]}
VOLUMES = (
    *("{p}/{v}/{k}", "{p}/{v}/im", "{v}/{p}/{k}", "{v}/{p}", "{p}/{p}_{v}", "{p}_{v}", "{v}_{p}", "{c}/{p}/{v}"),
    *("{c}/{p}_{v}", "{v}/{c}/{p}", "{p}_{v}_{k}", "{p}_{k}_{v}", "{k}/{p}_{v}", "{k}_{p}_{v}", "{c}_{p}_{v}"),
)
IMAGES = (
    *("{p}/{v}/{s}", "{p}/{v}/{k}/IMG{s3}", "{v}/{p}/slice_{s}", "{p}_{v}_{s}", "{p}_{v}_{k}/IMG{s3}"),
    *("{v}_{p}/{s}", "{c}/{p}/{v}/{s3}", "{k}_{p}_{v}/slice_{s}", "{p}/{k}/{s}", "{p}/{p}_{v}_{s}"),
)


def files(form: str, people: list[str], visits: list[str], kinds: list[str], end: str) -> dict[str, str]:
    """Whom the files of a tree show; every other person is of another class."""
    return {
        form.format(p=who, v=visit, k=kind, c=("AD", "CN")[i % 2], s=s, s3=f"{s + 1:03}") + end: who
        for i, who in enumerate(people)
        for visit in visits
        for kind in kinds
        for s in range(3)
    }


@pytest.mark.parametrize(("form", "end"), [(f, ".nii.gz") for f in VOLUMES] + [(f, ".png") for f in IMAGES])
def test_people_are_torn_by_no_tree_without_a_word(form, end, monkeypatch):
    silent = []
    for people in PEOPLE:
        for visits in VISITS if "{v}" in form else ("date",):
            for kinds in KINDS if "{k}" in form else ("T1",):
                own = files(form, PEOPLE[people], VISITS[visits], KINDS[kinds], end)
                found = Found(**{"volumes" if end == ".nii.gz" else "images": sorted(Path("/d") / key for key in own)})
                monkeypatch.setattr(layout, "find_files", lambda source, alone, found=found: (Path("/d"), found))
                read = layout.read_layout(Path("/d"))
                _, subjects = opening._tables(DataConfig(data="/d"), read)
                told = defaultdict(set)
                for key, who in zip(read.keys, subjects, strict=True):
                    told[own[key]].add(who)
                if any(len(names) > 1 for names in told.values()) and not read.doubts + read.subject_doubts:
                    silent.append((people, visits, kinds))
    assert silent == []
