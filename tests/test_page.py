"""The exported sketchpad in a real browser: it computes what the model does, and people can use it.

Needs playwright and Chromium: the system's own, or what `playwright install chromium` brings.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxmnist import MLP, classifier_objective, init_state, make_train_step, preprocess, train
from jaxmnist.export import to_page
from jaxmnist.pictures.predict import centre
from jaxmnist.weights import layer_sizes
from tests.test_export import draw

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.oracle

SEVEN = [[(85, 70), (195, 70), (165, 130), (130, 225)]]  # strokes, in 280ths of the sketchpad
FOUR = [[(100, 60), (85, 150), (190, 150)], [(165, 70), (160, 225)]]


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, names)), own)
        if not Path(path).exists():
            pytest.skip("needs Chromium: install it, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def exported(chromium, mnist, tmp_path_factory):
    """A page with a trained model, and the parameters in it."""
    model, tx, key = MLP(), optax.sgd(0.05), jax.random.key(0)
    step = make_train_step(classifier_objective(model.apply), tx)
    state, _ = train(step, init_state(model, tx, key), mnist[0], key, epochs=1)
    params = jax.device_get(state.params)
    path = tmp_path_factory.mktemp("page") / "sketchpad.html"
    path.write_text(to_page(params), encoding="utf-8")
    return path, params


@pytest.fixture
def visit(chromium, exported):
    """Opens the page without a network in a browser with the given options."""
    contexts, errors, requests, opened = [], [], [], set()

    def call(path=exported[0], **options):
        context = chromium.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        opened.add(path.as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert errors == []
    assert set(requests) == opened  # the page and nothing else


def logits(params, images):
    model = MLP(layer_sizes(params)[1:-1])
    with jax.default_matmul_precision("highest"):
        return np.asarray(model.apply(params, preprocess(np.asarray(images, np.uint8))))


def drag(page, strokes, release=True):
    """What a hand with a mouse does."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"] / 280, box["y"] + y * box["height"] / 280)
                  for x, y in stroke]  # fmt: skip
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=3)
        if release:
            page.mouse.up()


def evaluate(page, function, argument=None):
    """`page.evaluate` by way of JSON: much faster for long lists, and typed arrays become lists."""
    plain = "(_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value)"
    expression = f"text => JSON.stringify(({function})(JSON.parse(text)), {plain})"
    return json.loads(page.evaluate(expression, json.dumps(argument)))


def state(page):
    """The page's own state: strokes, and as arrays ink, image and probabilities."""
    found = evaluate(page, "() => jaxmnist.state")
    found["ink"] = np.array(found["ink"], np.float32).reshape(280, 280)
    return found


def strokes(page):
    return page.evaluate("jaxmnist.state.strokes.length")


def test_its_logits_are_the_models(visit, exported, mnist):
    images = mnist[1].images[:200]
    rows = images.reshape(200, 784).tolist()
    found = evaluate(visit(), "images => images.map(jaxmnist.logits)", rows)
    np.testing.assert_allclose(found, logits(exported[1], images), rtol=0, atol=1e-5)


def test_other_depths(visit, tmp_path, toy):
    for sizes in [(784, 10), (784, 7, 5, 3, 10)]:
        params = draw(sizes)
        (tmp_path / "page.html").write_text(to_page(params), encoding="utf-8")
        rows = toy.images.reshape(-1, 784).tolist()
        page = visit(tmp_path / "page.html")
        found = evaluate(page, "images => images.map(jaxmnist.logits)", rows)
        np.testing.assert_allclose(found, logits(params, toy.images), rtol=0, atol=1e-5)


def inks():
    """Drawings of many shapes, and some that nobody draws."""
    rng = np.random.default_rng(0)
    for side in (1, 2, 19, 20, 28, 56, 100):
        yield rng.integers(0, 256, (side, side + side // 3))
        yield 255 * (rng.random((side + 5, side)) < 0.1)
    for row, column in [(0, 0), (0, 279), (279, 140), (140, 140)]:
        dot = np.zeros((280, 280), int)
        dot[row, column] = 7
        yield dot
    for _ in range(20):  # blots with soft edges, heavier on one side, as far as over the edge
        y, x = np.mgrid[:140, :90]
        (cy, cx), (ry, rx) = rng.uniform(0, 90, 2), rng.uniform(3, 60, 2)
        blot = np.clip(1.3 - np.hypot((y - cy) / ry, (x - cx) / rx), 0, 1)
        yield (255 * blot * rng.uniform(0.2, 1, (1, 90))).astype(int)


def test_it_centres_as_predict_does(visit):
    drawings = [ink for ink in inks() if ink.max()]
    function = "inks => inks.map(ink => jaxmnist.centre(ink.flat(), ink.length, ink[0].length))"
    found = evaluate(visit(), function, [ink.tolist() for ink in drawings])
    assert len(found) > 30
    for ink, image in zip(drawings, found, strict=True):
        expected = centre(ink.astype(np.float32)).astype(int).ravel()
        np.testing.assert_allclose(image, expected, rtol=0, atol=1)


def test_it_says_that_a_dash_is_no_digit(visit):
    page = visit(viewport={"width": 320, "height": 568})
    drag(page, [[(60, 140), (220, 146)]])
    assert state(page)["doubt"] == "it is wider than a digit"
    words = "Probably no single digit: it is wider than a digit"
    assert page.locator("#phrase").inner_text() == words
    sync_api.expect(page.get_by_role("status")).to_have_text(words)
    page.keyboard.press("Escape")
    drag(page, SEVEN)
    assert "7" in page.locator("#phrase").inner_text()


def test_a_drawn_digit(visit, exported):
    """The whole way, from a mouse that is dragged to what is shown and said."""
    page = visit()
    assert state(page)["image"] is None
    drag(page, SEVEN, release=False)
    during = state(page)
    assert during["probabilities"] is not None  # while the button is still down
    page.mouse.up()
    drag(page, [[(100, 145), (180, 145)]])
    after = state(page)
    assert len(after["strokes"]) == 2
    assert after["probabilities"] != during["probabilities"]
    assert after["ink"][70, 140] == 255
    assert after["ink"][145, 110] == 255
    assert after["ink"][250, 250] == 0

    image = centre(after["ink"])
    np.testing.assert_allclose(after["image"], image.astype(int).ravel(), rtol=0, atol=1)
    scores = logits(exported[1], [np.reshape(after["image"], (28, 28))])[0].astype(np.float64)
    chances = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(after["probabilities"], chances, rtol=0, atol=1e-5)
    assert chances.argmax() == 7

    percents = [f"{round(100 * chance)}\u00a0%" for chance in after["probabilities"]]
    assert page.locator("#chances li > :last-child").all_inner_texts() == percents
    meters = page.get_by_role("meter").all()
    assert [meter.get_attribute("aria-valuetext") for meter in meters] == percents
    assert page.locator("#chances .best").get_by_role("meter").get_attribute("aria-label") == "7"
    shown = page.evaluate(
        "Array.from(document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28)"
        ".data.filter((_, i) => i % 4 === 0))"
    )
    assert shown == after["image"]
    words = f"{'Looks like' if chances[7] > 0.795 else 'Perhaps'} a 7, {percents[7]}"
    assert page.locator("#phrase").inner_text() == words
    sync_api.expect(page.get_by_role("status")).to_have_text(words)  # after a moment


def test_undo_and_clear(visit):
    page = visit()
    drag(page, FOUR)
    counts = [strokes(page)]
    for action in [
        lambda: page.get_by_role("button", name="Undo").click(),
        lambda: page.keyboard.press("Control+z"),
        lambda: page.keyboard.press("Control+z"),  # nothing left to undo
        lambda: drag(page, FOUR),
        lambda: page.get_by_role("button", name="Clear").click(),
        lambda: page.keyboard.press("Meta+z"),  # brings back what was cleared
        lambda: page.keyboard.press("Escape"),
        lambda: page.keyboard.press("Escape"),
        lambda: page.keyboard.press("Control+z"),
        lambda: page.keyboard.press("Delete"),
    ]:
        action()
        counts.append(strokes(page))
    assert counts == [2, 1, 0, 0, 2, 0, 2, 0, 0, 2, 0]
    assert state(page)["image"] is None
    assert page.locator("#phrase").inner_text() == "Draw a digit, 0 to 9."
    assert page.locator("#chances li > :last-child").all_inner_texts() == [""] * 10


def test_a_digit_drawn_with_the_keyboard_alone(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    assert page.locator("#pen").is_visible()
    for key, times in [("ArrowUp", 7), (" ", 1), ("ArrowDown", 14), (" ", 1), ("ArrowLeft", 5)]:
        for _ in range(times):
            page.keyboard.press(key)
    after = state(page)
    assert [len(stroke) for stroke in after["strokes"]] == [15]
    assert np.argmax(after["probabilities"]) == 1
    for expected in ("undo", "clear"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == expected
        assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    assert strokes(page) == 0


def test_a_finger_on_a_phone(visit):
    size = {"width": 360, "height": 740}
    page = visit(viewport=size, has_touch=True, is_mobile=True, device_scale_factor=3)
    # With nothing to scroll, touching would be no proof.
    page.evaluate("document.body.style.minHeight = '3000px'")
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)
    scale = box["width"] / 280
    for stroke in [*SEVEN, [(100, 145), (180, 145)]]:
        for kind, points in [
            ("touchStart", stroke[:1]),
            *(("touchMove", [point]) for point in stroke[1:]),
            ("touchEnd", []),
        ]:
            touches = [{"x": box["x"] + scale * x, "y": box["y"] + scale * y} for x, y in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    assert np.argmax(state(page)["probabilities"]) == 7
    assert strokes(page) == 2
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.getElementById('pad').width") == round(3 * box["width"])
    page.locator("#clear").tap()
    sync_api.expect(page.locator("#phrase")).to_have_text("Draw a digit, 0 to 9.")
    assert strokes(page) == 0


def test_the_pen_of_the_keys_is_not_there_for_a_mouse(visit):
    page = visit()
    pen = page.locator("#pen")
    drag(page, SEVEN)
    for key in ("Escape", "Control+z", "Escape"):
        page.keyboard.press(key)
        assert not pen.is_visible()
        drag(page, FOUR, release=False)
        assert not pen.is_visible()
        page.mouse.up()
    page.keyboard.press("ArrowUp")
    assert pen.is_visible()
    drag(page, SEVEN)
    assert not pen.is_visible()


@pytest.mark.parametrize("size", [(568, 232), (667, 331), (740, 360), (844, 340), (932, 430)])
def test_all_of_it_fits_on_a_phone_on_its_side(visit, size):
    width, height = size
    options = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = visit(viewport={"width": width, "height": height}, **options)
    drag(page, SEVEN)
    scroll = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(scroll) == [width, height]
    for place in page.locator("h1, #pad, button, #seen, #phrase, #chances li").all():
        box = place.bounding_box()
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    assert page.locator("#pad").bounding_box()["height"] >= 200
    for button in page.locator("button").all():
        assert button.bounding_box()["height"] >= 44


@pytest.mark.parametrize("size", [(320, 568), (360, 740), (740, 360), (1280, 800)])
def test_nothing_moves_and_nothing_is_cut(visit, size):
    width, height = size
    page = visit(viewport={"width": width, "height": height})
    boxes = "[...document.querySelectorAll('#pad, button, #seen, #chances li, [role=meter]')].map("
    boxes += "element => Object.values(element.getBoundingClientRect().toJSON()))"
    before = page.evaluate(boxes)
    drag(page, SEVEN)
    assert page.evaluate(boxes) == before
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if height > 700:
        assert page.locator("#chances li").last.bounding_box()["y"] < height - 20


def test_the_browser_keeps_it_from_the_network(visit):
    page = visit()
    fetched = "fetch('https://example.invalid/').then(() => 'loaded', error => error.message)"
    with page.expect_event("console", lambda message: "Content Security" in message.text):
        assert page.evaluate(fetched) == "Failed to fetch"


def test_it_is_as_the_visitor_wishes(visit):
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(pad).color]"
    light, dark = (visit(color_scheme=scheme).evaluate(colours) for scheme in ("light", "dark"))
    assert light != dark
    bar = "getComputedStyle(document.querySelector('[role=meter] > *')).transitionDuration"
    calm = visit(reduced_motion="reduce")
    assert calm.evaluate(bar) == "0s"
    assert visit(reduced_motion="no-preference").evaluate(bar) != "0s"
    drag(calm, SEVEN)
    pixel = "pad.getContext('2d').getImageData(pad.width / 2, pad.width / 4, 1, 1).data[0]"
    for scheme, expected in [("dark", "> 192"), ("light", "< 64")]:  # the drawing follows
        calm.emulate_media(color_scheme=scheme)
        for _ in range(100):  # page.wait_for_function is not allowed to run by the page's policy
            if calm.evaluate(f"{pixel} {expected}"):
                break
            calm.wait_for_timeout(20)
        assert calm.evaluate(f"{pixel} {expected}")
