"""Draw the README's pictures: what the notebook's run comes to, and a grid of drawn digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from _cli import run


@dataclasses.dataclass(frozen=True)
class Config:
    """The options."""

    out: Path = Path(__file__).parent.parent / ".github" / "pictures"
    """Directory for the pictures."""
    data_dir: Path | None = None
    """Directory with MNIST's four IDX files; JAXMNIST_DATA_DIR does the same."""
    seed: int = 0
    """The run's seed."""


def main(config: Config) -> None:
    """Train as the notebook does and draw."""
    import jax
    import matplotlib.figure  # noqa: F401  (missed now, and not when all is trained)
    import numpy as np
    import optax

    from jaxmnist import (
        MLP,
        epoch_order,
        evaluate,
        init_state,
        load_mnist,
        make_train_epoch,
        make_train_step,
        preprocess,
    )
    from jaxmnist.plots import (
        confident_mistakes,
        confusion_matrix,
        digit_grid,
        loss_curve,
        mistake_grid,
    )
    from jaxmnist.synthetic import load_synthetic

    train, test = jax.device_put(load_mnist(config.data_dir))
    model, tx, key = MLP(), optax.sgd(0.003), jax.random.key(config.seed)
    train_epoch = jax.jit(make_train_epoch(make_train_step(model.apply, tx)))
    run_test = jax.jit(lambda params: evaluate(model.apply, params, test))
    state, losses, records = init_state(key, model, tx), [], []
    for epoch in range(5):
        state, metrics = train_epoch(state, train, epoch_order(key, epoch, len(train.labels)))
        losses.append(np.asarray(metrics["loss"]))
        scores = run_test(state.params)
        records.append(
            {
                "train_loss": float(losses[-1].mean()),
                "test_loss": float(scores["loss"]),
                "test_accuracy": float(scores["accuracy"]),
            }
        )
    drawn, _ = load_synthetic(config.seed)
    rows = [drawn.images[drawn.labels == digit][:20] for digit in range(10)]
    images, labels = jax.device_get(test)
    logits = jax.jit(lambda params: model.apply(params, preprocess(test.images)))(state.params)
    chances = np.asarray(jax.nn.softmax(logits))
    worst = confident_mistakes(chances, labels)
    figures = {
        "loss.png": loss_curve(np.stack(losses), records),
        "confusion.png": confusion_matrix(np.asarray(scores["confusion"])),
        "mistakes.png": mistake_grid(images[worst], chances[worst], labels[worst]),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(config.out / name, dpi=110)
    digit_grid(np.stack(rows)).savefig(config.out / "drawn_digits.png", dpi=100)
    print(f"{', '.join(figures)} and drawn_digits.png are in {config.out}")


if __name__ == "__main__":
    run(main, Config, __doc__)
