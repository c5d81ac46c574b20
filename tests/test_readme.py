"""What README.md says is so."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_examples_run(capsys, monkeypatch):
    """All of them in one namespace, one after the other, as a reader would type them."""
    import jaxmnist.synthetic as synthetic
    from jaxmnist import Dataset

    train, test = synthetic.load_synthetic()
    small = Dataset(train.images[:6432], train.labels[:6432]), test  # a tenth of the time
    monkeypatch.setattr(synthetic, "load_synthetic", lambda: small)
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) >= 3
    namespace: dict[str, object] = {}
    for example in examples:
        exec(example.replace("(938,)", "(101,)"), namespace)
    accuracy, shape, losses = capsys.readouterr().out.strip().split("\n")
    assert 0.1 < float(accuracy) < 1
    assert shape == "(101,)"
    assert len(losses.strip("[]").split()) == 3


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
