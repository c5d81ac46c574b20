"""What README.md says is so."""

import re

import jax
import numpy as np
import optax
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def numbers(line):
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", line)]


def test_the_examples_run(capsys, monkeypatch):
    """All of them in one namespace, one after the other, as a reader would type them."""
    import jaxmnist.datasets.synthetic as synthetic
    from jaxmnist import Dataset

    drawn = synthetic.load_synthetic()
    small = [
        Dataset(x.images[:n], x.labels[:n]) for x, n in zip(drawn, (6432, 2000), strict=True)
    ]  # a tenth of the time
    monkeypatch.setattr(synthetic, "load_synthetic", lambda: small)
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    here: dict = {}
    printed = []
    for example in examples:
        exec(example.replace("(938,)", "(101,)"), here)
        printed.append(numbers(capsys.readouterr().out))
    assert printed.pop(1) == []  # the one that logs
    assert [entry["step"] for entry in here["log"]] == list(range(1, 102))
    loop, epoch, ensemble, slope, norms, curvature, own, mesh = printed

    mean_loss, accuracy = loop
    assert 0.1 < accuracy < 1
    np.testing.assert_allclose(here["losses"], here["single"]["loss"], rtol=1e-4)
    np.testing.assert_allclose(mean_loss, here["single"]["loss"].mean(), rtol=1e-4)
    assert epoch == [101]
    assert 0 < ensemble[0] < ensemble[1] < ensemble[2] < 1

    data, params, objective = here["data"], here["state"].params, here["objective"]
    loss = jax.jit(here["validation_loss"])
    np.testing.assert_allclose(slope[0], loss(0.003, data), rtol=1e-5)
    difference = (loss(0.0031, data) - loss(0.0029, data)) / 0.0002
    assert slope[1] < 0
    # A ReLU that switches in between moves the difference by some per cent.
    np.testing.assert_allclose(slope[1], difference, rtol=0.15)

    def gradient(params, n):
        return jax.jit(jax.grad(objective))(params, data.images[:n], data.labels[:n])

    assert here["norms"].shape == (64,)
    assert 0 < norms[0] < optax.tree.norm(gradient(params, 1)) <= norms[1]
    vector = here["vector"]
    for a, b in zip(*map(jax.tree.leaves, (vector, gradient(params, 64))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    def along(t):
        moved = jax.tree.map(lambda p, v: p + t * v, params, vector)
        return objective(moved, data.images[:640], data.labels[:640])

    bend = jax.jit(jax.grad(jax.grad(along)))(0.0) / optax.tree.vdot(vector, vector)
    np.testing.assert_allclose(curvature, [bend], rtol=1e-3)

    losses, worst = own[:2], own[2:]
    assert losses[1] < losses[0] < worst[0]
    assert len(worst) == 2
    assert mesh[0] < 1e-5


def test_every_module_and_script_has_its_line():
    names = [*(ROOT / "jaxmnist").glob("*.py"), *(ROOT / "scripts").glob("[!_]*.py")]
    table = README[README.index("## The code") :]
    for path in names:
        if path.name != "__init__.py":
            assert f"{path.name}`" in table, path.name


def test_every_public_name_is_documented():
    import jaxmnist

    for name in jaxmnist.__all__:
        assert getattr(jaxmnist, name).__doc__, name
