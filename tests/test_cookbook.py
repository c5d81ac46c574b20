"""Each chapter of the cookbook, jaxmnist/README.md, against a calculation without the library."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import (
    MLP,
    Dataset,
    TrainState,
    classifier_objective,
    epoch_order,
    evaluate,
    init_state,
    make_train_epoch,
    make_train_step,
)
from jaxmnist.augment import augment
from jaxmnist.checkpoint import load, save
from jaxmnist.datasets import synthetic
from tests.documents import read_chapters
from tests.helpers import PATIENCE, ROOT

START, CHAPTERS = read_chapters()
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _as_a_reader():
    """With JAX's ordinary promotion, which optax needs and a reader has."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def digits():
    """50 batches of 64 and one of 16 to train with, and 500 to test with."""
    labels = np.random.default_rng(0).integers(0, 10, 3716, np.int32)
    images = np.array(jax.jit(synthetic.draw_digits)(KEY, labels))
    return Dataset(images[:3216], labels[:3216]), Dataset(images[3216:], labels[3216:])


@pytest.fixture(scope="module")
def run(digits):
    """Runs a chapter's blocks after the first block; the names that exist after each of them."""

    @functools.cache
    def run_chapter(title, only=None):
        names = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(synthetic, "load_synthetic", lambda: digits)
            exec(START, names)
        given, after = dict(names), []
        blocks = CHAPTERS[title]
        for block in blocks if only is None else [blocks[only]]:
            exec(compile(block, title, "exec"), names)
            after.append(dict(names))
        assert all(names[name] is value for name, value in given.items() if name != "__builtins__")
        return after

    return run_chapter


@jax.jit
def by_hand(params, images):
    """The logits of an MLP for uint8 images, in the parameters' precision."""
    layers = [params["params"][f"linear_{k}"] for k in range(len(params["params"]))]
    x = (images.reshape(len(images), -1) / 255.0 - 0.5) / 0.5
    for k, layer in enumerate(layers):
        x = (jnp.maximum(x, 0) if k else x) @ layer["weight"].T + layer["bias"]
    return x


def losses_by_hand(params, images, labels):
    logits = by_hand(params, images)
    return jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels]


value_and_grad_by_hand = jax.jit(
    jax.value_and_grad(lambda params, batch: losses_by_hand(params, *batch).mean())
)


def gradient_by_hand(params, batch):
    return value_and_grad_by_hand(params, batch)[1]


def epoch_by_hand(params, data, order, rate):
    losses = []
    for first in range(0, len(order), 64):
        rows = np.asarray(order[first : first + 64])
        loss, grads = value_and_grad_by_hand(params, Dataset(data.images[rows], data.labels[rows]))
        params = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(rate) * g, params, grads)
        losses.append(loss)
    return params, np.array(losses)


def accuracy_by_hand(params, dataset):
    return np.mean(np.argmax(by_hand(params, dataset.images), axis=1) == dataset.labels)


def rows(dataset, *part):
    return jax.tree.map(lambda x: x[slice(*part)], dataset)


def doubles(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def assert_close(got, expected, rtol=1e-4):
    """Relative to the largest entry of each array, as rounding is."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def assert_equal(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_slope(loss, params):
    """A gradient equals the central difference along a random direction, in float64."""
    with jax.enable_x64(True):
        params = doubles(params)
        rng = np.random.default_rng(1)
        way = jax.tree.map(lambda x: rng.normal(size=x.shape) / x.size**0.5, params)
        slope = optax.tree.vdot(jax.jit(jax.grad(loss))(params), way)
        high, low = (
            jax.jit(loss)(jax.tree.map(lambda p, w, s=s: p + s * w, params, way))
            for s in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-4)
        assert abs(slope) > 1e-4


def one_step(objective, params, batch, where=None, *, model_state=None, **more):
    """The loss and the gradient that a step takes, through an SGD of rate 1."""
    tx = optax.sgd(1.0)
    state = TrainState(jnp.int32(0), params, tx.init(params), model_state, KEY)
    new, metrics = jax.jit(make_train_step(objective, tx, **more))(state, batch, where)
    return metrics["loss"], jax.tree.map(lambda a, b: a - b, params, new.params)


def test_every_chapter_is_tested_and_short():
    for title, blocks in CHAPTERS.items():
        assert f'run("{title}"' in Path(__file__).read_text() or not blocks, title
        assert all(len(block.splitlines()) <= 25 for block in blocks), title


@pytest.mark.slow
def test_your_own_loop(run, digits):
    (names,) = run("Your own loop")
    start = init_state(MLP(), optax.sgd(0.003), KEY).params
    params, losses = epoch_by_hand(start, digits[0], epoch_order(KEY, 0, 3216), 0.003)
    assert [entry["step"] for entry in names["log"]] == list(range(1, 52))
    np.testing.assert_allclose([entry["loss"] for entry in names["log"]], losses, rtol=1e-4)
    assert_close(names["state"].params, params)
    assert names["metrics"]["accuracy"] == np.float32(accuracy_by_hand(params, digits[1]))


@pytest.mark.slow
def test_an_epoch(run, digits):
    (names,) = run("An epoch")
    start = init_state(MLP(), optax.sgd(0.003), KEY).params
    params, losses = epoch_by_hand(start, digits[0], names["order"], 0.003)
    np.testing.assert_allclose(names["metrics"]["loss"], losses, rtol=1e-4)
    assert_close(names["state"].params, params)


@pytest.mark.slow
def test_an_ensemble(run, digits):
    (names,) = run("A run, and an ensemble")
    key, metrics = names["keys"][1], names["metrics"]
    params = init_state(MLP(), optax.sgd(0.003), key).params
    for epoch in range(2):
        order = epoch_order(key, epoch, 3216)
        params, losses = epoch_by_hand(params, digits[0], order, 0.003)
        np.testing.assert_allclose(metrics["loss"][1, epoch], losses, rtol=1e-4)
    assert_close(jax.tree.map(lambda x: x[1], names["states"].params), params)
    accuracy = accuracy_by_hand(params, digits[1])
    np.testing.assert_allclose(metrics["test_accuracy"][1, -1], accuracy, atol=0.002)


@pytest.mark.slow
def test_a_dict_of_two_images(run, digits):
    _, names = run("Your own model, loss and data")
    pairs, params = names["pairs"], names["state"].params
    left, right = by_hand(params, pairs["left"]), by_hand(params, pairs["right"])
    logits = 1 - np.sum(np.square(np.float64(left) - np.float64(right)), axis=1)
    losses = np.log1p(np.exp(np.where(pairs["same"], -logits, logits)))
    means = evaluate(names["outputs_fn"], params, pairs)
    np.testing.assert_allclose(means["loss"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(means["accuracy"], np.mean((logits > 0) == pairs["same"]), atol=1e-3)
    assert means["accuracy"] > max(np.mean(pairs["same"]), np.mean(~pairs["same"]))


@pytest.mark.slow
def test_derivatives(run, digits):
    schedule, examples, curvature = run("Derivatives")
    data, test = digits
    with jax.enable_x64(True):
        loss, params = jax.jit(schedule["validation_loss"]), doubles(schedule["params"])
        rates = np.full(50, 0.003)
        for step in (3, 40):
            high, low = (
                loss(rates + s * np.eye(50)[step], params, data, test) for s in (1e-7, -1e-7)
            )
            np.testing.assert_allclose(schedule["slopes"][step], (high - low) / 2e-7, rtol=1e-3)
    high, low = (
        np.mean(
            losses_by_hand(
                epoch_by_hand(schedule["params"], rows(data, 3200), np.arange(3200), 0.003 + s)[0],
                *test,
            )
        )
        for s in (1e-4, -1e-4)
    )
    # A ReLU that switches in between moves the difference.
    np.testing.assert_allclose(schedule["slopes"].sum(), (high - low) / 2e-4, rtol=0.1)

    params, grads, batch = examples["params"], examples["grads"], examples["batch"]
    for i in (0, 63):
        assert_close(
            jax.tree.map(lambda g, i=i: g[i], grads), gradient_by_hand(params, rows(data, i, i + 1))
        )
    assert_close(curvature["vector"], gradient_by_hand(params, batch))
    with jax.enable_x64(True):
        high, low = (
            gradient_by_hand(
                jax.tree.map(
                    lambda p, v, s=s: p + s * v, doubles(params), doubles(curvature["vector"])
                ),
                batch,
            )
            for s in (1e-7, -1e-7)
        )
        product = jax.tree.map(lambda a, b: (a - b) / 2e-7, high, low)
    assert_close(curvature["product"], product, rtol=1e-2)


def convolved(params, images):
    """The CNN's convolution in NumPy: 5x5, stride 2, zeros around so that 28x28 gives 14x14."""
    pixels = (images / 255.0 - 0.5) / 0.5
    padded = np.pad(pixels, ((0, 0), (1, 2), (1, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))[:, ::2, ::2]
    layer = doubles(params["params"]["Conv_0"])
    return np.einsum("nijkl,klc->nijc", windows, layer["kernel"][:, :, 0])


@pytest.mark.slow
def test_batch_norm(run, toy):
    first, _ = run("Dropout and batch norm")
    state = init_state(first["model"], first["tx"], KEY)
    train_step = jax.jit(make_train_step(first["objective"], first["tx"]))
    trained, _ = jax.jit(make_train_epoch(train_step))(state, toy, jnp.arange(100))
    second = train_step(state, rows(toy, 64))[0]
    mean, var = np.zeros(16), np.ones(16)
    for params, images in ((state.params, toy.images[:64]), (second.params, toy.images[64:])):
        x = convolved(params, images)
        mean = 0.9 * mean + 0.1 * x.mean(axis=(0, 1, 2))
        var = 0.9 * var + 0.1 * x.var(axis=(0, 1, 2))
    stats = trained.model_state["batch_stats"]["BatchNorm_0"]
    assert_close(stats, {"mean": mean, "var": var})  # padding left out, and nothing decayed

    variables = {**trained.params, **trained.model_state}  # as they are tested with
    layers = doubles(trained.params["params"])
    x = (convolved(trained.params, toy.images) - mean) / np.sqrt(var + 1e-5)
    x = np.maximum(x * layers["BatchNorm_0"]["scale"] + layers["BatchNorm_0"]["bias"], 0)
    logits = x.reshape(100, -1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    assert_close(first["model"].apply(variables, first["preprocess"](toy.images)), logits, 1e-3)


@pytest.mark.slow
def test_dropout_is_another_mask_in_each_step_and_the_same_after_a_resume(run, toy, tmp_path):
    first, last = run("Dropout and batch norm")
    assert last["metrics"]["test_accuracy"].shape == (1,)
    tx = optax.sgd(0.0)  # the parameters stay, so only the mask moves the loss
    train_step = jax.jit(make_train_step(first["objective"], tx))
    states, losses, batch = [init_state(first["model"], tx, KEY)], [], rows(toy, 64)
    for _ in range(4):
        state, metrics = train_step(states[-1], batch)
        states.append(state)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 4
    state = load(save(tmp_path, states[2]), states[2]).state
    for expected in losses[2:]:
        state, metrics = train_step(state, batch)
        assert metrics["loss"] == expected
    _, scanned = make_train_epoch(train_step)(states[0], toy, jnp.arange(64))
    assert scanned["loss"][0] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
def test_mixup_leaves_the_padding_out(run, toy):
    (names,) = run("Augmentation and mixup")
    params = init_state(MLP(), optax.sgd(0.0), KEY).params
    batch = jax.tree.map(lambda x: jnp.asarray(np.concatenate([x[64:], x[:28]])), toy)
    where = jnp.arange(64) < 36
    loss, _ = one_step(names["objective"], params, batch, where)

    @jax.jit
    def random(key):
        image_key, partner_key, share_key = jax.random.split(key, 3)
        images = augment(image_key, batch.images, rotation=10, shifting=1)
        partner = jax.random.choice(partner_key, 64, (64,), p=where)
        share = jax.random.uniform(share_key, (64, 1))
        return images, partner, share

    images, partner, share = map(np.array, random(jax.random.fold_in(KEY, 0)))
    assert partner.max() < 36
    assert len(set(partner)) > 10
    assert (images[:36] != np.array(batch.images[:36])).any(axis=(1, 2)).all()
    images = (images.reshape(64, -1) / 255.0 - 0.5) / 0.5
    labels = np.eye(10)[batch.labels]
    images, labels = (share * x + (1 - share) * x[partner] for x in (images, labels))
    logits = np.float64(by_hand(params, (images * 0.5 + 0.5) * 255.0))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss, -(labels * log_probs).sum(axis=1)[:36].mean(), rtol=1e-5)


@pytest.mark.slow
def test_ema_is_the_average_and_is_what_is_tested(run, digits):
    (names,) = run("EMA and schedule-free", only=0)
    state = init_state(MLP(), names["tx"], KEY)
    pair, average = (state, state.params), doubles(state.params)
    train_step, ema_step = jax.jit(names["train_step"]), jax.jit(names["ema_step"])
    for first in range(0, 640, 64):
        batch = rows(digits[0], first, first + 64)
        pair, _ = ema_step(pair, batch)
        state, _ = train_step(state, batch)
        average = jax.tree.map(lambda a, p: 0.99 * a + 0.01 * np.float64(p), average, state.params)
    assert_close(pair[1], average)
    tested = accuracy_by_hand(names["average"], digits[1])
    np.testing.assert_allclose(names["metrics"]["test_accuracy"], [tested], atol=0.003)
    assert tested != accuracy_by_hand(names["state"].params, digits[1])


@pytest.mark.slow
def test_schedule_free(run, digits):
    """A. Defazio et al., The Road Less Scheduled, 2024, equations 4 to 6, with beta = 0.9."""
    _, names = run("EMA and schedule-free")
    state = init_state(MLP(), names["tx"], KEY)
    x = z = doubles(state.params)
    train_step = jax.jit(names["train_step"])
    for t in range(5):
        batch = rows(digits[0], 64 * t, 64 * t + 64)
        state, _ = train_step(state, batch)
        y = jax.tree.map(lambda x, z: np.float32(0.1 * z + 0.9 * x), x, z)
        z = jax.tree.map(lambda z, g: z - 0.5 * np.float64(g), z, gradient_by_hand(y, batch))
        x = jax.tree.map(lambda x, z, t=t: x + (z - x) / (t + 1), x, z)
    assert_close(names["eval_params"](state), x, 1e-3)
    tested = accuracy_by_hand(names["eval_params"](names["state"]), digits[1])
    np.testing.assert_allclose(names["metrics"]["test_accuracy"], [tested], atol=0.003)


@pytest.mark.slow
def test_the_rate_and_the_norms_are_logged(run, digits):
    (names,) = run("Warm-up, with the rate and the norms logged")
    t = np.arange(51)  # 5 steps up, then half a cosine down
    rate = np.where(t < 5, 0.1 * t / 5, 0.05 * (1 + np.cos(np.pi * (t - 5) / 46)))
    metrics = jax.tree.map(lambda x: x[0], names["metrics"])
    np.testing.assert_allclose(metrics["rate"], rate, atol=1e-7)
    params = init_state(MLP(), names["tx"], KEY).params
    order = np.array(epoch_order(KEY, 0, 3216)[:128]).reshape(2, 64)

    def norm(tree):
        return np.sqrt(sum(np.square(np.float64(x)).sum() for x in jax.tree.leaves(tree)))

    before, after = (
        gradient_by_hand(params, jax.tree.map(lambda x, i=i: x[i], digits[0])) for i in order
    )
    assert metrics["update_norm"][0] == 0  # the first rate, so the parameters stay
    np.testing.assert_allclose(metrics["grad_norm"][:2], [norm(before), norm(after)], rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"][:2], 2 * [norm(params)], rtol=1e-5)
    momentum = jax.tree.map(lambda a, b: 0.02 * (0.9 * a + b), before, after)
    np.testing.assert_allclose(metrics["update_norm"][1], norm(momentum), rtol=1e-5)


@pytest.mark.slow
def test_distillation(run, digits):
    names, carried = run("Distillation")
    batch = rows(names["distilled"], 64)
    assert_close(batch["teacher"], by_hand(names["taught"].params, batch["images"]))
    params = names["state"].params

    def softmax(x):
        e = np.exp(np.float64(x))
        return e / e.sum(axis=1, keepdims=True)

    logits = np.array(by_hand(params, batch["images"]))
    hard = -np.log(softmax(logits)[np.arange(64), batch["labels"]])
    soft = -4 * (softmax(batch["teacher"] / 2) * np.log(softmax(logits / 2))).sum(axis=1)
    expected = 0.1 * hard + 0.9 * soft
    np.testing.assert_allclose(names["objective"](params, batch), expected, rtol=1e-4)
    assert_slope(lambda params: names["objective"](params, batch).mean(), params)

    assert_equal(carried["state"].model_state, names["taught"].params)
    labelled, teacher = rows(digits[0], 64), names["taught"].params
    loss, _ = one_step(carried["objective_with_teacher"], params, labelled, model_state=teacher)
    soft = -(softmax(batch["teacher"]) * np.log(softmax(logits))).sum(axis=1)
    np.testing.assert_allclose(loss, soft.mean(), rtol=1e-5)


@pytest.mark.slow
def test_an_autoencoder(run, digits):
    (names,) = run("An autoencoder")
    images, params = digits[1].images, names["state"].params
    pixels = (images.reshape(500, -1) / 255.0 - 0.5) / 0.5
    error = np.mean(np.square(by_hand(params, images) - pixels))
    measured = evaluate(names["objective"], params, images, batch_size=64)
    np.testing.assert_allclose(measured, error, rtol=1e-5)
    assert error < np.var(pixels, axis=0).mean()  # better than the mean image


@pytest.mark.slow
def test_regression(run, digits):
    (names,) = run("Regression")
    dataset, params = names["with_ink"](digits[1].images), names["state"].params
    np.testing.assert_allclose(dataset["ink"], digits[1].images.mean((1, 2)) / 255 * 255, rtol=1e-5)
    error = np.array(by_hand(params, dataset["images"]))[:, 0] - dataset["ink"]
    huber = np.where(abs(error) < 1, error**2 / 2, abs(error) - 0.5)
    np.testing.assert_allclose(names["objective"](params, dataset), huber, rtol=1e-3, atol=1e-4)
    r2 = 1 - np.mean(error**2) / np.var(dataset["ink"])
    measured = evaluate(names["predict"], params, dataset, summarize=names["r_squared"])["r2"]
    np.testing.assert_allclose(measured, r2, 1e-4)
    assert r2 > 0.5


@pytest.mark.slow
def test_example_weights(run, digits):
    (names,) = run("Example weights")
    batch = rows(names["weighted"], 64)
    params = init_state(MLP(), names["tx"], KEY).params
    assert set(batch.weights) == {1, 4}
    nines = 3 * (batch.labels == 9)  # a weight of 4 is the example three times more

    def repeated(params):
        images, labels = (np.concatenate([x, np.repeat(x, nines, axis=0)]) for x in batch[:2])
        return losses_by_hand(params, images, labels).sum() / 64

    loss, grads = one_step(names["objective"], params, batch)
    expected_loss, expected = jax.jit(jax.value_and_grad(repeated))(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(grads, expected)
    assert_slope(lambda params: names["objective"](params, batch)[0].mean(), params)


@pytest.mark.slow
def test_dp_sgd(run, digits):
    by_optimizer, by_step = run("DP-SGD")
    batch, objective = rows(digits[0], 64), by_step["objective"]
    params = init_state(by_step["model"], optax.sgd(1.0), KEY).params
    gradient = jax.grad(lambda p, image, label: losses_by_hand(p, image[None], label[None])[0])
    each = doubles(jax.jit(jax.vmap(gradient, (None, 0, 0)))(params, *rows(batch, 36)))
    squares = (np.square(g.reshape(36, -1)).sum(axis=1) for g in jax.tree.leaves(each))
    norms = np.sqrt(sum(squares))
    clip = float(np.median(norms))  # half of them are clipped
    scale = np.minimum(1, clip / norms)
    expected = jax.tree.map(lambda g: np.tensordot(scale, g, axes=1) / 36, each)

    @jax.jit
    def own(noise):
        made, where = by_step["private"](clip, noise), jnp.arange(64) < 36
        return one_step(objective, params, batch, where, value_and_grad=made)[1]

    clean, noisy = own(0.0), own(0.5)
    assert_close(clean, expected)
    difference = jax.tree.map(lambda a, b: np.ravel(a - b), noisy, clean)
    noise = np.concatenate(jax.tree.leaves(difference))
    np.testing.assert_allclose(noise.std(), 0.5 * clip / 36, rtol=0.01)
    assert abs(noise.mean()) < 0.01 * noise.std()

    dp = optax.contrib.differentially_private_aggregate(clip, 0.0, 0)
    tx = optax.chain(dp, optax.sgd(1.0))
    step = make_train_step(objective, tx, value_and_grad=by_optimizer["per_example"])
    state = TrainState(jnp.int32(0), params, tx.init(params), None, KEY)
    new, _ = jax.jit(step)(state, rows(batch, 36))
    assert_close(jax.tree.map(lambda a, b: a - b, params, new.params), expected)
    assert new.opt_state[0].rng_key != state.opt_state[0].rng_key  # the next noise is another


@pytest.mark.slow
def test_sam(run, digits):
    (names,) = run("Sharpness-aware minimization")
    batch, params = rows(digits[0], 64), init_state(MLP(), names["tx"], KEY).params
    first = gradient_by_hand(params, batch)
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(first)))
    nearby = jax.tree.map(lambda p, g: p + np.float32(0.05) / norm * g, params, first)
    objective, made = classifier_objective(MLP().apply), names["sam"]
    _, grads = one_step(objective, params, batch, value_and_grad=made)
    assert_close(grads, gradient_by_hand(nearby, batch))


@pytest.mark.slow
def test_population_based_training(run):
    _, names = run("Population-based training")
    states, rates = names["states"], names["states"].opt_state.hyperparams["learning_rate"]
    losses = jnp.array([0.3, 0.1, 0.9, 0.2, 0.8, 0.4, 0.5, 0.6])  # worst: 2 and 4; best: 1 and 3
    after = names["exchange"](KEY, states, losses)
    source = [0, 1, 3, 3, 1, 5, 6, 7]
    assert_equal(after.params, jax.tree.map(lambda x: x[np.array(source)], states.params))
    changed = after.opt_state.hyperparams["learning_rate"] / rates[np.array(source)]
    assert {float(x) for x in changed.round(3)[jnp.array([2, 4])]} <= {np.float32(0.8), 1.25}
    np.testing.assert_array_equal(changed[jnp.array([0, 1, 3, 5, 6, 7])], 1)
    assert (after.key == states.key).all()
    assert rates.min() > 1e-3 > names["rates"].min()
    assert names["metrics"]["loss"].shape == (8, 51)


@pytest.mark.slow
def test_early_stopping_stops_where_a_loop_would(run, digits):
    (names,) = run("Early stopping")
    train_epoch, losses, kept = jax.jit(names["train_epoch"]), [], []
    state = init_state(names["model"], names["tx"], KEY)
    while len(losses) < 50 and len(losses) - int(np.argmin([9, *losses])) < 2:
        state, _ = train_epoch(state, digits[0], epoch_order(KEY, len(losses), 3216))
        losses.append(float(np.mean(losses_by_hand(state.params, *digits[1]))))
        kept.append(state.params)
    best = int(np.argmin(losses))
    assert (int(names["epoch"]), int(names["best_epoch"])) == (len(losses), best + 1)
    assert len(losses) < 50
    np.testing.assert_allclose(names["least"], losses[best], rtol=1e-3)
    assert_close(names["params"], kept[best], 1e-2)


ON_FOUR_DEVICES = """
import json, sys
import jax, numpy as np
from jaxmnist import Dataset
from jaxmnist.augment import augment
from jaxmnist.datasets import synthetic
from jaxmnist.checkpoint import load, save

arrays = np.load(sys.argv[1])
data = Dataset(arrays["images"], arrays["labels"])
synthetic.load_synthetic = lambda: (data, data)
for block in json.loads(sys.argv[2]):
    exec(block)
    if "metrics" in globals():
        weight = state.params["params"]["linear_0"]["weight"]
        moment = state.opt_state[0].mu["params"]["linear_0"]["weight"]
        parts = [x.addressable_shards[0].data.shape[0] for x in (weight, moment)]
        print(json.dumps([len(jax.devices()), parts, metrics["loss"].tolist()]))
"""


@pytest.mark.slow
def test_four_devices_train_as_one(run, digits, tmp_path, monkeypatch):
    """The chapters on a mesh: the state replicated, and a quarter of it on each device."""
    (names,) = run("A mesh of devices")
    run("FSDP")  # on one device both run too
    np.savez(tmp_path / "data.npz", **digits[0]._asdict())
    blocks = [START, *CHAPTERS["A mesh of devices"], *CHAPTERS["FSDP"]]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", ON_FOUR_DEVICES, tmp_path / "data.npz", json.dumps(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    train_epoch = jax.jit(make_train_epoch(names["train_step"]))
    state = init_state(MLP(), names["tx"], KEY)
    _, metrics = train_epoch(state, digits[0], epoch_order(KEY, 0, 3216))
    for (devices, parts, losses), part in zip(told, (128, 32), strict=True):
        assert (devices, parts) == (4, [part, part])
        np.testing.assert_allclose(losses, metrics["loss"], rtol=1e-3)
    np.testing.assert_allclose(names["metrics"]["loss"], metrics["loss"], rtol=1e-4)


def linen_losses(hidden, layers, digits, tx):
    """A Linen model's losses over the epoch, from the weights and biases of another model."""
    params = {
        "params": {f"linear_{k}": {"weight": w, "bias": b} for k, (w, b) in enumerate(layers)}
    }
    state = TrainState(jnp.int32(0), params, tx.init(params))
    train_step = make_train_step(classifier_objective(MLP(hidden).apply), tx)
    train_epoch = jax.jit(make_train_epoch(train_step))
    return train_epoch(state, digits[0], epoch_order(KEY, 0, 3216))[1]["loss"]


@pytest.mark.slow
def test_nnx(run, digits):
    names = run("NNX, Equinox, and functions as models", only=0)[0]
    layers = [
        (p["kernel"][...].T, p["bias"][...])
        for p in (names["params"][k] for k in ("first", "last"))
    ]
    expected = linen_losses((64,), layers, digits, names["tx"])
    np.testing.assert_allclose(names["metrics"]["loss"][0], expected, rtol=1e-3)


@pytest.mark.slow
def test_equinox(run, digits):
    pytest.importorskip("equinox", reason="needs equinox")
    names = run("NNX, Equinox, and functions as models", only=1)[0]
    layers = [(layer.weight, layer.bias) for layer in names["net"].layers]
    expected = linen_losses((64,), layers, digits, names["tx"])
    np.testing.assert_allclose(names["metrics"]["loss"][0], expected, rtol=1e-3)


@pytest.mark.slow
def test_a_function_of_arrays(run, digits):
    names = run("NNX, Equinox, and functions as models", only=2)[0]
    layers = [(jnp.zeros((10, 784)), jnp.zeros(10))]
    tx = optax.chain(
        names["tx"],
        optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(lambda x: x.ndim == 1, p)),
    )  # it has no bias
    expected = linen_losses((), layers, digits, tx)
    np.testing.assert_allclose(names["metrics"]["loss"][0], expected, rtol=1e-3)


@pytest.mark.slow
def test_a_torch_loader(run, digits):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.manual_seed(0)
    names = run("A data loader", only=0)[0]
    torch.manual_seed(0)
    loader = names["DataLoader"](torch.arange(3216), batch_size=64, shuffle=True, drop_last=True)
    same_order_trains_the_same(names, np.concatenate([x.numpy() for x in loader]), digits)


@pytest.mark.slow
def test_a_grain_loader(run, digits):
    pytest.importorskip("grain", reason="needs grain")
    names = run("A data loader", only=1)[0]
    order = names["grain"].MapDataset.range(3216).shuffle(seed=0)
    same_order_trains_the_same(names, np.array([order[i] for i in range(3200)]), digits)


def same_order_trains_the_same(names, order, digits):
    train_step = make_train_step(classifier_objective(MLP().apply), names["tx"])
    state = init_state(MLP(), names["tx"], KEY)
    state, _ = jax.jit(make_train_epoch(train_step))(state, digits[0], order)
    assert names["state"].step == len(order) // 64 == 50
    assert_close(names["state"].params, state.params, 1e-3)


@pytest.mark.slow
def test_muon_and_weight_decay_know_weights_of_out_in(run):
    (names,) = run("Muon, and weight decay for weights only")
    params = init_state(MLP(), names["muon"], KEY).params
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)

    def turned(tree):
        return jax.tree.map(lambda x: x.T, tree)

    plain = optax.contrib.muon(0.02)  # for matrices [in, out]
    expected, _ = plain.update(turned(grads), plain.init(turned(params)), turned(params))
    updates, _ = names["muon"].update(grads, names["muon"].init(params), params)
    assert_close(updates, turned(expected), 1e-3)

    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = names["adamw"].update(zeros, names["adamw"].init(params), params)
    for layer, update in zip(params["params"].values(), updates["params"].values(), strict=True):
        np.testing.assert_allclose(update["weight"], -1e-4 * layer["weight"], rtol=1e-5)
        assert not update["bias"].any()


@pytest.mark.slow
def test_a_resumed_run_is_equal_to_the_bit(run, digits):
    (names,) = run("A checkpoint")
    state = init_state(MLP(), names["tx"], KEY)
    for epoch in range(2):
        state, _ = names["train_epoch"](state, digits[0], epoch_order(KEY, epoch, 3216))
    assert_equal(names["state"]._replace(key=None), state._replace(key=None))
    assert names["state"].key == state.key
    assert names["found"].config == {"rate": 1e-3, "epoch": 0}
    assert names["damaged"] == []


@pytest.mark.slow
def test_a_profile_has_the_names(run):
    (names,) = run("A profile")
    text = names["compiled"].as_text()
    for scope in ("gradient", "objective", "transform", "loss", "linear_2", "update"):
        assert re.search(rf"[/(]{scope}[/)]", text), scope
    assert list(Path(names["directory"]).rglob("*.xplane.pb"))
