"""A call to the file system fails: the run ends with one line that names the file.

Then the same command ends as an undisturbed run: weights, metrics, losses and the whole state, bit
for bit.
"""

import contextlib
import resource
from errno import EACCES, EIO, EMFILE, ENOSPC, EROFS

import pytest

from tests.helpers import ending, refused, run_script, use_few_digits
from tests.stress.injection import inject

CODES = (ENOSPC, EACCES, EROFS, EIO, EMFILE)
OPTIONS = ("--dataset", "synthetic", "--batch-size", 100, "--momentum", 0.9, "--epochs", 4)
COMMAND = ("train.py", *OPTIONS, "--resume", "--out")


@contextlib.contextmanager
def limited(size):
    """Within it no file can grow above so many bytes, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run ends in, and the number of its calls below its directory."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        calls = inject("", 0, str(out))
        assert run_script(*COMMAND, out) == 0
    return ending(out), calls()


def goes_on(script, out, undisturbed):
    assert not list(out.glob("*.tmp"))
    assert script(*COMMAND, out)[0] == 0
    assert ending(out) == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.stress)])
def test_a_call_fails(script, few_digits, tmp_path, undisturbed, every):
    assert undisturbed[1] > 30
    for n in range(every, undisturbed[1] - 5, every):  # a process's first run makes a few more
        out = tmp_path / f"{n:03}"
        calls = inject(str(CODES[n // every % len(CODES)]), n, str(out))
        done = script(*COMMAND, out)
        if done[0]:
            refused(done, 1, str(out))
        assert calls() >= n
        goes_on(script, out, undisturbed)


def test_the_disk_is_full(script, few_digits, tmp_path, undisturbed):
    """For a checkpoint of 876 kB."""
    with limited(440_000):
        done = script(*COMMAND, tmp_path / "out")
    refused(done, 1, "checkpoint-", "File too large")
    goes_on(script, tmp_path / "out", undisturbed)
