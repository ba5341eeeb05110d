"""The split that a folder's name says, however the word for it is joined to others."""

import re
from functools import lru_cache

from vqvae2.data import rules

_WORDS = (re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"), re.compile(r"[a-z]+"))  # BraTSTraining, VOCtest
_GLUED = re.compile(r"(?<=.)(?:set|data|images?)$")  # testset


@lru_cache(maxsize=rules.NAMES_KEPT)
def said_split(name: str) -> str:
    """Return the split whose word a name holds; "" for none. A name that says train and val is of training images.

    >>> [said_split(name) for name in ("dataset-03test", "PALM-Training400", "livecell_train_val_images", "contest")]
    ['test', 'train', 'train', '']
    """
    words = {_GLUED.sub("", word.lower()) for pattern in _WORDS for word in pattern.findall(name)}
    found = {split for word in words for split, own in rules.SPLITS.items() if len(word) > 2 and own.fullmatch(word)}
    return min(found) if len(found) == 1 else "train" if found == {"train", "val"} else ""
