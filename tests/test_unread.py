"""What lies beside the data and is not read, and words, columns and flags that were passed over without a word."""

import shlex

import pytest
from case_trees import lay
from pictures import write

from vqvae2.data import DataConfig, open_data
from vqvae2.data.layout import read_layout
from vqvae2.data.selection import Choice
from vqvae2.data.tables import read_table
from vqvae2.errors import UserError

PEOPLE = [f"P{n:02}/{k}.png" for n in range(12) for k in range(3)]


UNREAD = [
    ([f"P{n:02}/T1.mnc" for n in range(20, 35)], "15 .mnc files cannot be read (P20/T1.mnc, P21/T1.mnc, P22/T1.mnc)"),
    ([f"scan{n}.gif" for n in range(14)], "14 .gif files cannot be read"),
    (["part2.zip"], "1 .zip file cannot be read (part2.zip): unpack them"),
    (["part2.tar.gz", "x.h5"], "1 .tar.gz file cannot be read"),
    (["people.csv", "readme.txt", "one.gif", "P00/motion_physio.tsv.gz", "P00/c1_seg8.mat", "P00/a.raw"], ""),
]


@pytest.mark.parametrize(("beside", "told"), UNREAD)
def test_what_may_be_data_and_is_not_read_is_asked_about(tmp_path, beside, told):
    layout = lay(tmp_path, PEOPLE + beside)
    assert len(layout.keys) == len(PEOPLE)
    assert len(set(layout.subjects)) == 12
    if not told:
        assert not layout.doubts
        return
    (doubt,) = layout.doubts
    assert told in doubt
    words = shlex.split(doubt.split("--exclude ")[1].removesuffix(" silences this"))
    assert not read_layout(tmp_path, Choice(exclude=tuple(words))).doubts


BLOCKS = {
    "StyleGAN's dataset_tool": [f"{n // 1000:05}/img{n:08}.png" for n in (0, 1, 2, 1000, 1001, 69999)],
    "img2dataset": [f"{n // 10_000:05}/{n:09}.jpg" for n in (0, 3, 9998, 10_001, 19_000, 20_000, 20_001)],
    "this package": [f"{n // 1000:03}/{n:05}.png" for n in (0, 500, 999, 1000, 1999, 2000, 2001)],
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("loose", [[], ["preview.png"]])
def test_blocks_of_a_numbered_list_are_nobody(tmp_path, name, loose):
    names = [*BLOCKS[name], *(f"00009/img{9000 + n:08}.png" for n in range(20 * (name[0] == "S")))]
    layout = lay(tmp_path, names + loose * (len(names) > 9))
    assert len(set(layout.subjects)) == len(layout.keys)
    assert not layout.attributes


PATIENT_AND_SLICE = ["{p:05}/{p:05}{k:04}.png", "{p:03}/{p:03}{k:03}.png", "{p:03}/{k:05}.png", "{p:05}/img{k:08}.png"]


@pytest.mark.parametrize("form", PATIENT_AND_SLICE)
def test_numbers_of_a_patient_and_a_slice_are_no_blocks(tmp_path, form):
    names = [form.format(p=p, k=k) for p in range(1, 13) for k in range(1, 40)]
    layout = lay(tmp_path, names)
    assert len(set(layout.subjects)) == 12
    assert len(set(zip([key.split("/")[0] for key in layout.keys], layout.subjects, strict=True))) == 12


def test_folders_that_are_said_to_be_people_are_no_blocks(tmp_path):
    lay(tmp_path, BLOCKS["this package"])
    assert len(set(read_layout(tmp_path, Choice(layout="subjects")).subjects)) == 3


def test_one_number_written_in_two_ways_is_one_block(tmp_path):
    assert len(lay(tmp_path, ["07/07.png", "7/7.png"]).keys) == 2


@pytest.mark.parametrize("word", ["[Not Available]", "not reported", "'--", "Unspecified", "\\N", "[Unknown]"])
def test_cells_that_tell_nothing_are_no_class(tmp_path, word):
    rows = [f"P{n:02},{'FM'[n % 2] if n > 2 else word}" for n in range(12)]
    (tmp_path / "people.csv").write_text("\n".join(["subject,sex", *rows]))
    table = read_table(tmp_path / "people.csv")
    assert {row["sex"] for row in table.rows} == {"F", "M", ""}


def test_a_date_tells_the_visit_where_one_person_has_several(tmp_path):
    head = "subject,year,diagnosis\n"
    (tmp_path / "visits.csv").write_text(head + "P01,1,CN\nP01,3,AD\nP02,1,CN\n")
    (tmp_path / "people.csv").write_text(head + "P01,1950,CN\nP02,1961,AD\nP03,1972,CN\n")
    assert read_table(tmp_path / "visits.csv").visit_column == "year"
    assert read_table(tmp_path / "people.csv").visit_column is None
    (tmp_path / "sites.csv").write_text("IXI_ID,site_id,STUDY_DATE\n1,a,2005-08-25\n2,a,2006-01-02\n3,b,2005-03-04\n")
    assert read_table(tmp_path / "sites.csv").visit_column is None, "a site has several dates, a person one"
    names = [f"P{n:02}_year_{year}_s{k}.png" for n, year in ((1, 1), (1, 3), (2, 1)) for k in range(4)]
    write(tmp_path / "images", names)
    opened = open_data(DataConfig(data=str(tmp_path / "images"), labels=f"{tmp_path / 'visits.csv'}:diagnosis"))
    classes = opened.attributes["diagnosis"]
    told = {
        key: classes[row[0]] for part in opened.splits.values() for key, row in zip(part.keys, part.labels, strict=True)
    }
    assert {told[f"P01_year_1_s{k}.png"] for k in range(4)} == {"CN"}
    assert {told[f"P01_year_3_s{k}.png"] for k in range(4)} == {"AD"}


@pytest.mark.parametrize("name", ["bins", "bids_entity"])
def test_a_setting_given_twice_is_refused(name):
    twice = {"bins": ("age=40", "age=60"), "bids_entity": ("space=A", "space=B")}[name]
    with pytest.raises(UserError, match="twice"):
        DataConfig(**{name: twice})
    DataConfig(**{name: (twice[0], twice[0])})
