"""Training goes as it went: loss curves from a fixed seed beside stored ones."""

import json

import numpy as np
import pytest
from golden_curves import GOLDEN, curves

# Another number of threads or another processor rounds otherwise. That moves the VQ-VAE's loss by a thousandth within
# these steps, and by a twentieth the priors', whose codes are others then.
TOLERANCE = {"vqvae": 0.01, "prior-top": 0.1, "prior-bottom": 0.1}


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return curves(tmp_path_factory.mktemp("curves") / "run")


@pytest.mark.parametrize("training", TOLERANCE)
def test_the_loss_falls_as_it_did(now, training):
    stored = json.loads(GOLDEN.read_text())[training]
    assert len(stored) == 10
    assert now[training][-1] < 0.65 * now[training][0], "a curve that does not fall shows nothing"
    np.testing.assert_allclose(now[training], stored, rtol=TOLERANCE[training])
