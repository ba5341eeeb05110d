"""What names mean, of masks and of pictures that show other images; `masks` and `subjects` apply these tables."""

import re
from typing import NamedTuple

MASK_FILES = re.compile(
    r"\w+_fast_(?!restore)|(?:VSD|SMIR)\.Brain\w*\.XX\.O\.OT\.|BiasField(?!_?corr)(?:_|$)|im\d{4}\.(?:ah|vk)$|"
    r"(?:1st|2nd|3rd)[ _-](?:manual|observer|expert|reader|rater)",
    re.IGNORECASE,
)
"""Masks and maps by how a name begins: ``T1_fast_bias`` of FSL, ``BiasField_P01`` of SPM, ``1st_manual`` of DRIVE,
``im0001.ah`` of STARE,
``VSD.Brain.XX.O.OT.70608.nii`` of BraTS 2015 and ISLES 2015."""


class Beside(NamedTuple):
    """Words that make a file or folder what lies beside an image, where that image is there: its name without the word.

    Attributes:
        what: is left out.
        sure: else the report asks.
        words: pattern of them.
        example: the image, and what lies beside it.
    """

    what: str
    sure: bool
    words: re.Pattern[str]
    example: tuple[str, str]


BESIDE = (  # the first that fits decides
    Beside(
        "masks",
        True,
        re.compile(
            r"lesions?|tumou?rs?|infarct(?:s|ions?)?|strokes?|o?edema|necrosis|enhancing|nodules?|polyps?|cysts?|"
            r"ha?emorrhages?|ha?ematomas?|metastas[ei]s|mets|aneurysms?|thromb(?:us|i)|plaques?|[gcp]tv\d*|findings?|"
            r"(?:manual|expert|rater|reader|observer|annotator|obs)\d*|anno|annotated|drawings?|outlines?|trimaps?|"
            r"silhouettes?|superpixels?|matte|instances?|semantic|masken?|m[aá]scaras?|staple|parc(?:ellations?)?|labell?ed|lbls?|"
            r"predictions?"
        ),
        ("P01_3.png", "P01_3_lesion.png"),
    ),
    Beside(
        "masks",
        False,
        re.compile(
            r"liver|lungs?|heart|kidneys?|spleen|pancreas|prostate|bladder|breast|thyroid|bones?|spine|vertebrae?|hippocamp(?:us|i)|"
            r"ventricles?|cortex|cerebellum|myocardium|lv|rv|vessels?|arter(?:y|ies)|veins?|airways?|disc|disk|cup|fovea|"
            r"macula|exudates?|microaneurysms?|csf|[gw]m|object|parts|core|foreground|preds?|ground|targets?|outputs?|bin|binary|parsing|"
            r"matting|mattes|bound(?:ary|aries)?|edges?|atlas|aal|voi|silver|gold|et|tc|wt"
        ),
        ("P01_3.png", "P01_3_liver.png"),
    ),
    Beside("depth maps", True, re.compile(r"depths?|disp(?:arit(?:y|ies))?"), ("00000_colors.png", "00000_depth.png")),
    Beside(
        "pictures made of others",
        True,
        re.compile(
            r"overlay(?:s|ed)?|heat-?maps?|gradcams?|bbox(?:es)?|previews?|thumb(?:nail)?s?|qc|qa|snapshots?|screenshots?|"
            r"montages?|mosaics?"
        ),
        ("P01_3.png", "P01_3_overlay.png"),
    ),
    Beside(
        "maps made of others",
        True,
        re.compile(
            r"mixeltype|(?:log)?jac(?:obians?)?|warp(?:field)?s?|inverse|thickness|deformations?|displacements?|"
            r"prob(?:s|abilit(?:y|ies)|maps?)?|biasfield"
        ),
        ("P01_3.png", "P01_3_jacobian.png"),
    ),
    Beside("pictures made of others", False, re.compile(r"cams?|plots?|figures?"), ("P01_3.png", "P01_3_plot.png")),
)
COLOURS = re.compile(r"rgb|colou?rs?")
"""What an image is called beside its depth map: ``00000_colors.png``."""
IMAGES = re.compile(
    rf"(?:jpe?g|png|rgb)?ima?ge?s?(?:t[rsa]|va)?|{COLOURS.pattern}|imgs?|pictures?|photos?|"
    r"originals?(?:[ _-]?images?)?|inputs?|slices?|scans?|full(?:[ _-]?(?:size|res(?:olution)?))?"
)
"""Folders that hold the images where another holds what was made of them."""
QUALIFIERS = {
    *("whole", "total", "all", "left", "right", "l", "r", "lh", "rh", "optic", "white", "matter", "binary", "final"),
    *("subject", "cortical", "log", "tissue"),
}
"""Words that go with those: ``P01_whole_tumor``."""
PICTURES = re.compile(
    r"qc|qa|quality|checks?|slicesdir|snapshots?|screenshots?|shots?|thumb(?:nail)?s?|previews?|montages?|mosaics?|overlays?|"
    r"figures?|figs?|plots?|reports?|docs?|html|logos?|ground"
)
"""Pictures beside volumes that show these or are their masks: ``P01_qc.png``, ``figures/P01.png``, ``Ground/1.png``."""
DATA_SET = re.compile(r"(?:^|[\W_])data-?_?sets?$", re.IGNORECASE)
"""Folders of a data set, whatever else their names say: ``brain_tumor_dataset``."""
CLASS_OR_MASK = re.compile(r"wmh|rois?|gt|consensus|ribbon|contours?|truth")
"""Folders that hold masks, or the images of a class: masks only if images of the same names lie elsewhere."""
