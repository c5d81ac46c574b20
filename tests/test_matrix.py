"""A part of stress/matrix.py and stress/flags.py: every script under the worst conditions."""

import pytest

from tests.stress import flags, matrix
from tests.stress.every_script import SCRIPTS, prepare

SHORT = [("train", "newline in a path"), ("predict", "both closed"), ("report", "no HOME")]
SHORT += [("sweep", "POSIX locale"), ("evaluate", "stdout full"), ("export", "newline in a path")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("matrix")
    prepare(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "condition"),
    [
        *SHORT,
        *[
            pytest.param(script, condition, marks=pytest.mark.stress)
            for script in SCRIPTS
            for condition in (
                "newline in a path",
                "both closed",
                "POSIX locale",
                "read-only HOME",
                "closed HOME",
            )
            if (script, condition) not in SHORT
        ],
    ],
)
def test_it_works_or_says_why_not(prepared, tmp_path, script, condition):
    outcome = matrix.attempt(condition, script, prepared, tmp_path / "case")
    assert not outcome.startswith("FAILED"), outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "outcome"),
    [
        ("jax_disable_jit", "one line: "),
        pytest.param("jax_transfer_guard", "one line: ", marks=pytest.mark.stress),
        pytest.param("jax_explicit_x64_dtypes", "one line: ", marks=pytest.mark.stress),
        ("jax_platform_name", "one line: "),
        ("jax_disable_most_optimizations", "another run: jax_disable_most_optimizations"),
        ("jax_default_prng_impl", "another run: jax_default_prng_impl"),
        ("jax_numpy_rank_promotion", "equal"),
    ],
)
def test_a_flag_of_jax(prepared, flag, outcome):
    assert flags.attempt(flag, prepared).startswith(outcome)
