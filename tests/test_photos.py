"""A folder of a user's own pictures: its index, its accuracy by kind, what is misread."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.errors import DataError
from jaxmnist.photos import read_index, read_or_blank
from tests.helpers import refused


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.new("L", (200, 200), 255)
    picture.save(folder / "blank.png")
    ImageDraw.Draw(picture).line((110, 40, 90, 160), 0, 14)
    picture.save(folder / "one.png")
    (folder / "index.csv").write_text("file,label,kind\none.png,1,pen\nblank.png,0,nothing\n")
    return folder


def test_the_index(folder):
    one, blank = read_index(folder)
    assert (one.path.name, one.label, one.kind) == ("one.png", 1, "pen")
    assert read_or_blank(one.path).any()
    assert not read_or_blank(blank.path).any()


@pytest.mark.parametrize(
    "text", ["", "file,label\n", "file,label\nno.png,1\n", "file,label\none.png,x\n", "a,b\n1,2\n"]
)
def test_an_index_that_cannot_be_used(folder, text):
    (folder / "index.csv").write_text(text)
    with pytest.raises(DataError, match=r"index\.csv"):
        read_index(folder)


def test_the_script(script, folder, tmp_path):
    import jax
    import optax

    from jaxmnist import MLP, init_state
    from jaxmnist.weights import save_weights

    weights, plot = tmp_path / "weights.safetensors", tmp_path / "misread.png"
    save_weights(weights, init_state(MLP(), optax.sgd(0.1), jax.random.key(0)).params)
    result = script("robustness.py", weights, "--photos", folder, "--plot", plot)
    code, stdout, stderr = result
    assert (code, stderr) == (0, "")
    assert "| nothing  | 1 |    0.00% |" in stdout.replace("  1 |", " 1 |")
    assert np.asarray(Image.open(plot)).shape[0] > 100
    refused(script("robustness.py", weights, "--plot", plot), 2, "--photos")
