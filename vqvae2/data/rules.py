"""What names mean: the tables by which people, visits, masks, folders and columns are told apart.

Every rule of the package that reads a name is here or, of masks and pictures, in `mask_rules`, with an example and,
where it belongs to one, its cohort. `subjects`, `levels` and `layout` apply them.
"""

import re
from typing import NamedTuple


class Cohort(NamedTuple):
    """How a public data set names its files; the pattern's group is the person, searched anywhere in a path."""

    pattern: str
    example: str
    person: str
    source: str


COHORTS = (
    Cohort(r"(sub-[A-Za-z0-9]+)", "sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", "sub-01", "BIDS"),
    Cohort(r"(OAS[123]_?\d{4,5})", "OAS1_0001_MR1_mpr-1_100.jpg", "OAS1_0001", "OASIS-1 and 2: MR1 is the visit"),
    Cohort(r"(OAS[123]_?\d{4,5})", "OAS30001_MR_d0129_T1w.nii.gz", "OAS30001", "OASIS-3: d0129 is the day"),
    Cohort(r"(\d{3}_(?-i:S)_\d{4,5})", "ADNI_002_S_0295_MR_MPR_Br_20070319_S118671_I118673.nii", "002_S_0295", "ADNI"),
    Cohort(r"(IXI\d{3}-[A-Z]+-\d{4})", "IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211", "IXI"),
    Cohort(r"(BraTS-[A-Z]+-\d{4,5})", "BraTS-GLI-00001-001-t1c.nii.gz", "BraTS-GLI-00001", "BraTS 2023: 001 is a scan"),
    Cohort(r"(BraTS2021_\d{5})", "BraTS2021_00495_flair.nii.gz", "BraTS2021_00495", "BraTS 2021"),
    Cohort(
        r"(BraTS\d*_(?:Train|Valid|Test)[a-z]*_\d{3})",
        "BraTS20_Training_001_t1ce.nii.gz",
        "BraTS20_Training_001",
        "BraTS 2020",
    ),
    Cohort(
        r"(BraTS1[789]_\w+?_\w+?_1)", "Brats18_TCIA01_231_1_t2.nii.gz", "Brats18_TCIA01_231_1", "BraTS 2017 to 2019"
    ),
    Cohort(r"(BraTS_(?:2013|tcia)_pat\d+)", "brats_tcia_pat105_0083/VSD.mha", "brats_tcia_pat105", "BraTS 2015"),
    Cohort(
        r"(TCGA[-_][A-Z0-9]{2}[-_][A-Z0-9]{4})", "TCGA_CS_4978_19960910_1.tif", "TCGA_CS_4978", "TCGA, LGG of Kaggle"
    ),
    Cohort(r"(\d{7})_2\d{4}_\d_\d", "1000012_20252_2_0.nii.gz", "1000012", "UK Biobank: field, visit, array"),
    Cohort(
        r"(?:Caltech|CMU|KKI|Leuven|Max_?Mun|NYU|OHSU|Olin|Pitt(?:sburgh)?|SBL|SDSU|Stanford|Trinity|UCLA|UM|USM|Yale|Brown|"
        r"NeuroIMAGE|Peking|WashU)_(?:[A-Z0-9]_)?(00\d{5})",
        "UM_1_0050272_anat.nii.gz",
        "0050272",
        "ABIDE, ADHD-200: a site before it",
    ),
    Cohort(r"(\d{6})_[37]T", "100307_3T_T1w_MPR1.nii.gz", "100307", "Human Connectome Project"),
    Cohort(r"(MIRIAD_\d{3})", "miriad_188_AD_M_01_MR_1.nii.gz", "miriad_188", "MIRIAD"),
    Cohort(r"(?:PPMI|AIBL)_(?!(?:19|20)\d\d(?!\d))(\d+)", "PPMI_3102_MR_MPRAGE_br_20120912.nii", "3102", "PPMI, AIBL"),
    Cohort(r"(CC\d{4})(?=_[A-Z])", "CC0001_philips_15_55_M.nii.gz", "CC0001", "Calgary-Campinas"),
    Cohort(
        r"(?:Mass|Calc)-(?:Training|Test)_(P_\d{5})",
        "Mass-Training_P_00001_LEFT_CC_1/1-1.png",
        "P_00001",
        "CBIS-DDSM: some have masses and calcifications",
    ),
    Cohort(
        r"\d{8}_([0-9a-f]{16})_MG",
        "20586908_6c613a14b80a8591_MG_R_CC_ANON.png",
        "6c613a14b80a8591",
        "INbreast: the first number is the image's",
    ),
    Cohort(r"(NORMAL2-IM-\d{4})", "NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383", "chest X-rays of Kermany 2018"),
    Cohort(r"(?:CNV|DME|DRUSEN|NORMAL)-(\d{4,})(?=-\d)", "CNV-1016042-1.jpeg", "1016042", "OCT2017: a class before it"),
    Cohort(
        r"SOB_[BM]_[A-Z]{1,3}[-_](\d\d-\d+[A-Z]*)",
        "SOB_B_A-14-22549AB-40-001.png",
        "14-22549AB",
        "BreakHis: year, slide, magnification, number",
    ),
)
KNOWN = re.compile(
    "(?<![A-Za-z0-9])(?:" + "|".join(dict.fromkeys(c.pattern for c in COHORTS)) + ")(?![0-9])", re.IGNORECASE
)


FILMS_IN_PAIRS = re.compile(r"(mdb)(\d{3})[lr]?[smlx]?")
"""Names of MIAS: an odd number and the even one after it are the two films of one woman."""


class Caution(NamedTuple):
    """What the names of a cohort do not tell; the pattern is searched in a path."""

    pattern: str
    example: str
    cohort: str
    sentence: str


CAUTIONS = (
    Caution(
        rf"(?:^|/){FILMS_IN_PAIRS.pattern}\.[a-z]+$",
        "mdb001.pgm",
        "MIAS",
        "two films that follow each other, such as mdb001 and mdb002, are of one woman, and are read so; where each is "
        "somebody else, give --subject-pattern 'mdb[0-9]+'",
    ),
    Caution(
        r"(?:Mass|Calc)-(?:Training|Test)_P_\d{5}_(?:LEFT|RIGHT)_(?:CC|MLO)_\d",
        "Mass-Training_P_00001_LEFT_CC_1/1-1.png",
        "CBIS-DDSM",
        "those that end in a number hold crops of a finding and its mask; --exclude '*_CC_[0-9]*' '*_MLO_[0-9]*' "
        "leaves them out",
    ),
)
_COPY = r"(?:copy|kopie|copie|c[oó]pia|kopi[ae]?|duplicate|duplikat)"
COPIES = (  # what file managers call a copy of P01, in several languages; the first that fits is taken off
    re.compile(rf"(?i:{_COPY} ?(?:\(\d+\) ?|\d+ )?(?:of|von|de|di|van|av|af) )(?P<name>.+)"),  # Copy (2) of P01
    re.compile(rf"(?P<name>.*[^\W_]\)?)(?i:(?: - | |_|-){_COPY}(?:[ _]?\(?\d+\)?)?)"),  # P01 - Kopie (2), P01_copy_2
    re.compile(rf"(?P<name>.*[^\W_]\)?)(?i: ?\((?:another )?(?:\d+(?:st|nd|rd|th) )?{_COPY}\))"),  # P01 (3rd copy)
)
COPY_BESIDE = re.compile(r"(?P<name>.*\w)(?: ?\([1-9]\)|[ _-]+(?i:backup|bak|old|new))")
"""A copy only where what it was made of is there: a browser's ``P01 (1)`` is else a counter, as ``benign (1)``."""
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
YEAR = re.compile(r"(?:19|20)\d\d")
YEAR_MONTH = r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])"
"""A date only behind a name with a number: in ``2001-07.png`` it is a person and a slice."""
DATE = (
    r"(?:19|20)\d\d(?P<gap>[-_.]?)(?:0[1-9]|1[0-2])(?P=gap)(?:0[1-9]|[12]\d|3[01])"
    r"(?:[T_ -]\d\d[_:-]\d\d[_:-]\d\d(?:\.\d+)?)?"
    r"|(?:0[1-9]|[12]\d|3[01])[-.](?:0[1-9]|1[0-2])[-.](?:19|20)\d\d"
    rf"|(?i:(?<![a-z])(?:(?:0?[1-9]|[12]\d|3[01])[-. ]?)?{_MONTH}[-_. ]?(?:19|20)\d\d)"
    rf"|(?i:(?:19|20)\d\d[-_. ]?{_MONTH}(?![a-z]))"
    rf"|{YEAR_MONTH}(?![-.]?\d)"
)


class Word(NamedTuple):
    """What a part of a name means.

    Attributes:
        role: of the part.
        alone: pattern of the words that have it by themselves.
        numbered: pattern of the words that have it with a number, joined (``week3``) or next (``week_3``).
        example: a name with such a part.
    """

    role: str
    alone: str
    numbered: str
    example: str


WORDS = (  # the first that fits decides
    Word(
        "mask",
        r"(?!un)[a-z]*masks?(?:png|bin|binary|inv)?|msk|(?:1st|2nd|3rd)(?:ho|manual|observer|expert|reader|rater)|"
        r"(?!non|no|un)[a-z]*segs?|segm|[a-z]*segmentations?|pve|gts?|gt(?:v[a-z]{0,2}\d*|fine|coarse|seg|mask|map|img|label)s?|(?:ground)?truths?|labels?|"
        r"labelmaps?|annot(?:s|ations?)?|contours?|rois?|delineations?|wmh|(?:wm|a)parc(?:\+aseg)?|ribbon|consensus",
        r"mask|seg|label|roi|gt",
        "TCGA_CS_4978_19960910_1_mask.tif",
    ),
    Word(
        "copy",
        r"aug[a-z]*|[hv]?flip(?:ped|lr|ud)?|rot(?:ated?|ation)?\d*|mirror(?:ed)?|nois[ey]|blur(?:red)?|bright[a-z]*|"
        r"copy|kopie|duplicate|zoom(?:ed)?|shift(?:ed)?|shear(?:ed)?|elastic|jitter|translated?|\(\d+\)",
        r"aug[a-z]*|flip|rot[a-z]*|copy|noise|zoom|shift",
        "case_004_slice_3_aug_2.png",
    ),
    Word(
        "kind",
        r"raw|(?:ax|cor|sag)?(?:[23]d)?(?:t1|t2|pd)(?:w|wi|weighted|c|n|f|ce|gd|km|fs|star|post|pre|map|dual|spa?ir|stir|vibe|dixon|tse|gre)*|"
        r"(?:ax|cor|sag)?(?:t2)?flair|ir|mp2?rage|mpr?|rage|spgr|spa?ir|stir|vibe|dixon|(?:in|out|opp|opposed)-?phase|dce|dsc|bravo|dwi|adc|dti|swi|asl|bold|fmri|tof|mra|fdg|pib|orig|nu|norm|restore|acpc|dc|bet|(?:skull)?strip(?:ped)?|"
        r"reg(?:istered)?|coreg|aligned|warp(?:ed)?|mni(?:152)?[a-z0-9]*|to|on|in|space|native|middle|template|bias|n[34]|"
        r"correct(?:ed|ion)|gradwarp|scaled|norm(?!al$)[a-z]*|pre-?proc(?:essed)?|processed|denoised|resampled|crop(?:ped)?|iso|"
        r"\d+mm|masked|gfc|defaced?|anon|gd|enhanced|contrast",
        r"mpr|mprage",
        "OAS1_0028_MR1_mpr-1_100.jpg",
    ),
    Word(
        "slice",
        r"slices?",
        r"slices?|slc|sl|img|image|im|frame|fr|ax(?:ial)?|cor(?:onal)?|sag(?:ittal)?|idx|layer|tile|patch|nr|no|[zkxyis]",
        "case_004_week_0_slice_0.png",
    ),
    Word(
        "visit",
        r"bl|base(?:line)?|init(?:ial)?|final|screening|sc|pre|post|before|after|(?:pre|post)op|follow|up|follow-?up|fup?|"
        r"rescan|retest|\d{1,3}(?:mos?|mths?|mons?|months?|wks?|weeks?|yrs?|years?|days?|[mwyd])",
        r"ses|sess|session|visit|time-?point|tp|time|week|wk|month|mon|year|yr|day|scan|exam|mr|run|acq|echo|repeat|rep|wave|"
        r"follow-?up|fu|[vmwdty]",
        "subj001_tp2_slice_10.png",
    ),
    Word("side", r"left|right|lh|rh|[lr]|o[dsu]", r"hemi", "P01_L_k012.png"),
    Word(
        "thing",  # what is shown; before a number part of the person's name, as in brain_001
        r"brain|head|mri?|ct|pet|anat(?:omical)?|struct(?:ural)?|img|images?|imaging|vol(?:ume)?|scans?|nii|nifti|"
        r"axial|coronal|sagittal|transversal|ax|cor|sag|tra",
        r"(?!)",
        "anat.nii.gz",
    ),
)
"""The parts of a name that are not the person."""
CONTROLS = {"healthy", "control", "controls", "normal", "normals", "ctrl", "con", "hc", "nc", "cn", "negative", "none"}
"""Words for who has no finding: ``site1_healthy_1`` is no image of which ``site1_stroke_1`` is a mask."""
SCANNERS = re.compile(r"ge(?:1t5|3t)?|siemens|philips|toshiba|canon|(?:1\.?5|1p5|3|7)t", re.IGNORECASE)
"""Sites that are machines, in which one person may have lain twice: ``3T/sub-01``, ``7T/sub-01``."""
PHOTO_SOURCES = re.compile(
    r"flickr|pixabay|google|bing|baidu|yahoo|web|unsplash|pexels|getty|shutterstock|instagram|youtube|wiki(?:pedia|media)?|"
    r"imagenet|kaggle|coco",
    re.IGNORECASE,
)
"""Where photographs come from: ``cat/flickr_cat_000002.jpg``."""
MODALITIES = re.compile(r"mri?|ct|cbct|pet|spect|us|ultrasound", re.IGNORECASE)
"""What an image was taken by: folders of these alone are kinds of image, as ``CT/012.png`` and ``MR/012.png``."""
VISIT_BEGIN = {"bl", "base", "baseline", "init", "initial", "screening", "sc"}
"""Words for visit 0."""
NO_VISIT = re.compile(r"(?:scan|run|acq|echo|rep|repeat|exam|mr)\D*\d+", re.IGNORECASE)
"""Several images of one visit."""
ONE_PERSON = re.compile(
    r"(?:sub(?:j(?:ect)?)?|patient|pat|case|person|participant|volunteer|p)[\W_]*\d+", re.IGNORECASE
)
"""Folders of one person, whatever their scans are called: ``patient3/scan1.nii``."""
GROUP_WORDS = re.compile(
    r"(?:site|cent[er]{2}|scanner|hospital|group|grp|class|grade|data-?set|ds|fold|batch|part|cohort|set)[\W_]*\d*$",
    re.IGNORECASE,
)
"""What names no person: a group, whose number may follow. The person's own is the next (``site1_012``)."""

PART = re.compile(
    r"(?:.*[\W_])?(?:fold|batch|part|partition|plate|chunk|shard|cv|images?|base|subset)[\W_]*\d+",
    re.IGNORECASE,
)
"""Folders that count parts of the data: ``images_001``, ``fold_2``, ``HAM10000_images_part_1``, ``Base11``."""
PART_OF_COHORT = re.compile(r"disc[\W_]*\d+", re.IGNORECASE)
"""Parts where all files have a cohort's own names: the discs of OASIS-1."""
PART_OR_PATIENT = re.compile(r".*[A-Za-z]{3}[\W_]+pt[\W_]*\d+", re.IGNORECASE)
"""Parts too where the numbers of the files go on from one to the next: ``volume_pt1`` of LiTS."""
ENUMERATED = re.compile(r"(?:[A-Za-z]|\d{1,2})[.)] +")
"""What counts a folder and is no part of its name: ``a. Training Set`` of IDRiD."""
HASH = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{8,}", re.IGNORECASE)
"""Files that are called by a hash; folders of its first characters tell nothing: ``0/6/f/06f52e9102a8d3b2.jpg``."""
CHANNEL = re.compile(r"(?:^|/)images(?:Tr|Ts|Va)/[^/]*\d[^/]*(_(?P<channel>00\d\d))\.[^/]+$")
"""The channel of nnU-Net's images: ``imagesTr/BRATS_001_0000.nii.gz``."""
NO_MASK = {"with", "without", "no", "non", "face"}
"""Words before a folder's ``mask`` that make it a class: ``with_mask``."""
SPLITS = {
    "train": re.compile(r"train(?:ing|val)?(?:20\d\d)?|tr"),
    "val": re.compile(r"val(?:id|idat(?:e|ion))?(?:20\d\d)?|va|dev"),
    "test": re.compile(r"test(?:ing)?(?:20\d\d)?|ts"),
}
"""Folders that are parts of a data set: ``keras_png_slices_validate``, ``imagesTr``, ``test_set``."""
NEUTRAL = re.compile(
    r"keras|png|jpe?g|tiff?|bmp|dcm|dicom|nii|nifti|slices?|images?|imgs?|img|pictures?|pics?|photos?|set|data|files?|[23]d|"
    r"inputs?|volumes?|vols?|mri|folder|split|thumbnails?"
)
"""Words of folders that tell nothing."""
PLAIN = (NEUTRAL, *SPLITS.values())
"""Words of folders that name no class and no person: those, and those of splits."""
SPLIT_PART = re.compile(r"\.(x\d{0,2})$", re.IGNORECASE)
"""What may stand beside the word of a split: ``train.X1`` of ImageNet-100."""
ATTRIBUTES = (
    ("magnification", re.compile(r"\d{2,3}x")),
    (
        "plane",
        re.compile(r"axial|coronal|sagittal|transversal"),
    ),  # a level of folders is called so where the pattern fits a part of one of its names
    (
        "source",
        re.compile(r"(?:original|augment(?:ed)?|aug|data-?set|source|raw|synthetic|real|figshare|sartaj|br35h)\w*"),
    ),
    (
        "site",
        re.compile(
            rf"site\d*|cent(?:er|re)\d*|hospital\d*|scanner\d*|{SCANNERS.pattern}|"
            r"utrecht|singapore|amsterdam|guys|hh|iop|caltech|nyu|ucla|berlin|london|paris|vienna|leuven|kki|pitt|yale|stanford|ohsu|olin|trinity|usm"
        ),
    ),
)
"""Names for what a level of folders above the people tells; else it is a ``size`` in pixels, or the ``class``."""
VISIT_CODE = re.compile(rf"bl|base(?:line)?|sc|[mvtwy]\d{{1,3}}|{DATE}|{YEAR_MONTH}|(?:19|20)\d\d", re.IGNORECASE)
"""Folders that may be visits, if the same people are in several of them: ``M00/AD/001``, ``2019/001``."""
MONTH_0 = {"bl", "sc", "base", "baseline", "m0", "m00"}
MONTHS = MONTH_0 | {f"m{month:0{digits}}" for month in range(0, 241, 3) for digits in (1, 2)}
"""Those of them that are nothing else: ADNI's."""


class Block(NamedTuple):
    """Folders that hold ``size`` files each of one numbered list, so that they name no person.

    The number in a file's name, divided by ``size``, is that of its folder. In all folders but the last, numbers must
    reach ``filled`` of the size: a patient's number may stand before that of the slice, too (``012/012024.png``).
    """

    folder: str
    file: str
    size: int
    filled: float
    source: str


BLOCKS = (
    Block(r"\d{5}", r"img(\d{8})", 1_000, 0, "StyleGAN's dataset_tool: 00012/img00012345.png"),
    Block(r"\d{5}", r"(\d{9})", 10_000, 0.5, "img2dataset, as of LAION: 00012/000120345.jpg"),
    Block(r"\d{3}", r"(\d{5,})", 1_000, 0.5, "samples of this package, 10,000 and more: 012/12345.png"),
)


class Recurring(NamedTuple):
    """How a name is read that several folders of a level have.

    Attributes:
        level: an attribute.
        one: whether it is one person, who must not be torn over two splits, or another in each folder.
        example: two folders of such a name.
        why: this is likelier, or does less harm.
    """

    level: str
    one: bool
    example: tuple[str, str]
    why: str


RECURRING = (  # the first whose level is there decides; either way the report asks
    Recurring(
        "site", False, ("Center_01/Patient_01", "Center_07/Patient_01"), "centres count their people: MSSEG 2016"
    ),
    Recurring("subclass", True, ("benign/adenosis/P01", "benign/fibroadenoma/P01"), "as of classes"),
    Recurring("class", True, ("AD/P01", "CN/P01"), "held-out figures are right either way; MURA has people in both"),
)
CLASS_STEMS = {
    *("", "class", "label", "grade", "stage", "type", "group", "category", "c"),
    *("cdr", "kl", "klg", "birads", "bi-rads", "bi_rads", "pirads", "pi-rads", "pi_rads", "gleason", "isup", "who"),
    *("dr", "tnm", "nyha", "asa", "ecog", "gmfcs", "fazekas", "mta", "braak", "thal", "level", "score", "severity"),
}
"""Folders of these words and a number are classes."""
WORDNET = re.compile(r"n\d{8}(?:-.+)?")
"""Folders of ImageNet's classes, and what its images begin with."""
DATA_SETS = re.compile(r"(?:Task\d{2,3}|Dataset\d{3})_.+")
"""Folders of several data sets, each a class: ``Task02_Heart`` of the Decathlon, ``Dataset027_ACDC`` of nnU-Net."""
LISTED = re.compile(r"(\d{2,4})\.[^\W\d_].*")
"""Folders of classes in a list: ``001.ak47`` of Caltech-256, ``001.Black_footed_Albatross`` of CUB-200."""
LISTED_OR_PEOPLE = re.compile(r"(\d{1,5})[_\- ]+[^\W\d_].*")
"""Folders of a list of classes if their files tell the people, as ``01_TUMOR`` of Kather's; else perhaps people."""
COUNTED_IN_SPLIT = re.compile(
    r"(?:(?-i:[A-Z]{4,})(?:20\d\d)?_)?(?:train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)(?:20\d\d)?"
    r"[_\-. ]?[a-d]?[_\-. ]*\d+",
    re.IGNORECASE,
)
"""Names that count the images of a split, and no person's: ``train_1``, ``testA_12`` of GlaS, ``COCO_train2014_9``."""
PERSONAL_NAME = re.compile(r"[^\W\d_][^\W\d_]*[.'’-]?(?:[ _]+[^\W\d_][\w.'’-]*){1,4}")
"""Folders that may be called after people, if each word begins with a capital: ``George_W_Bush``."""

FILE_COLUMNS = ("file", "filename", "path", "image")
"""Columns that name images."""
OTHER_FILE_COLUMNS = re.compile(r"(?:file|image|img)(?:[ _-]?(?:path|name|file|id|index))?|filepath|id_code")
"""Columns that name images where none of those is there: if none names people, or each row has another image."""
IMAGE_ID_COLUMNS = re.compile(r"image[ _-]?(?:data[ _-]?)?u?id")
"""Columns of identifiers that are a part of each file's name, such as ``I118673`` of ADNI's search."""
IMAGE_ID = re.compile(r"[A-Za-z]\d{3,}")
SUBJECT_COLUMNS = re.compile(
    r"(?:sub(?:j|ject)?|participant|patient|person|case|proband|pat\.?)s?(?:[ _-]?(?:id|name|code|nr\.?|no\.?))?"
)
"""Columns that name people, also beside a column of files."""
PEOPLE_COLUMNS = re.compile(rf"{SUBJECT_COLUMNS.pattern}|ptid|rid|eid")
"""Those, and the columns of people of ADNI and UK Biobank."""
LESION_COLUMNS = re.compile(r"lesion[ _-]?(?:id|name|code)")
"""Columns that name what several images show, where no column names people."""
ID_COLUMNS = re.compile(r".*id|pseudonym|code|name")
"""Columns that may name people where no column names files: ``IXI_ID``, ``PTID``, ``eid``, ``BraTS21ID``."""
NO_PATIENT = re.compile(
    r"(?:anon(?:\.|ymi[sz]ed|ymous)?|(?:de[ -]?)?identified|removed|dummy|patient|x+|0+)(?:[ ^_-]*(?:id|name))?",
    re.IGNORECASE,
)
"""Patient IDs of DICOM headers that an anonymisation writes into all of them."""
VISIT_COLUMNS = re.compile(
    r"(?:ses(?:s|sion)?|visit|vis|viscode\d?|time[ _-]?point|tp|wave|week|month|(?:redcap[ _-]?)?event)s?"
    r"(?:[ _-]?(?:id|code|nr|no|name))?"
)
"""Columns that tell the visit of a row: ``session_id`` of BIDS, ``VISCODE`` of ADNI, ``eventname`` of ABCD."""
OTHER_OR_VISIT = {"ses", "event"}
"""Columns that may be a session, or OASIS's socioeconomic status or the end of a survival: visits only where their
cells are words, or differ between a person's rows."""
DATE_COLUMNS = re.compile(
    r"(?:(?:scan|exam|visit|acq(?:uisition)?|study|mri?)[ _-]?)?date|year|day|scan|exam|follow[ _-]?up"
)
"""Columns that tell the visit where a person's rows differ in them: ``EXAMDATE`` of ADNI, ``year``; else they may be
anything, such as IXI's ``STUDY_DATE``, of which each person has one."""
REDCAP_EVENT = re.compile(r".+_arm_\d+", re.IGNORECASE)
"""Cells that name a visit as REDCap does: ``baseline_year_1_arm_1``, in BIDS ``ses-baselineYear1Arm1``."""
ABBREVIATIONS = {"m": "male", "f": "female", "l": "left", "r": "right", "y": "yes", "n": "no", "t": "true"}
"""Cells that may mean the same class as the word, which the report asks about."""
NAMES_KEPT = 1 << 18
"""Names whose reading is kept, since several rules ask for each, one after the other."""
MISSING = {
    *("", "-", "--", "'--", ".", "?", "??", "n/a", "n.a.", "na", "<na>", "nan", "nat", "null", "nil", "none", "\\n"),
    *("unknown", "unk", "missing", "undefined", "unspecified", "not specified", "not available", "not recorded"),
    *("not stated", "not provided", "not collected", "not tested", "not performed", "not entered", "withheld"),
    *("unknown or not reported", "n.d.", "n.k.", "(blank)", "–", "—", "redacted", "[redacted]"),
    *("not known", "not reported", "not applicable", "not evaluated", "not assessed", "not done", "no data", "empty"),
    *("[not available]", "[not applicable]", "[not evaluated]", "[unknown]", "[discrepancy]"),
    *("prefer not to answer", "prefer not to say", "refused", "don't know", "do not know"),
    *("#n/a", "#na", "#null!", "#value!", "#ref!", "#div/0!", "#name?", "#num!", "#n/a n/a"),
}
"""Cells that tell nothing, in any case."""
MISSING_NUMBERS = {"-9", "-99", "-999", "-9999", "-9.0", "-99.0", "-999.0"}
"""Cells that tell nothing in a column that has no other number below zero (PLINK, SPSS)."""
