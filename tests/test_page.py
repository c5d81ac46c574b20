"""The exported sketchpad in a real browser: it computes what the model does, and people can use it.

Needs playwright and Chromium: the system's own, or what `playwright install chromium` brings.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxmnist.export import to_page
from jaxmnist.pictures.predict import centre, doubt, log_probabilities
from jaxmnist.weights import load_weights
from tests.test_predict import shapes

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.oracle

SEVEN = [[(85, 70), (195, 70), (165, 130), (130, 225)], [(110, 145), (180, 145)]]  # in 280ths
PHONE = {"has_touch": True, "is_mobile": True, "device_scale_factor": 3}


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    params = load_weights(trained_run)
    path = tmp_path_factory.mktemp("page") / "sketchpad.html"
    path.write_text(to_page(params), encoding="utf-8")
    return path, params


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    with sync_api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("needs Chromium: install it, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, exported):
    """Opens the page without a network in a window with the given options."""
    contexts, errors, requests = [], [], set()

    def call(**options):
        contexts.append(chromium.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.add(request.url))
        page.goto(exported[0].as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert errors == []
    assert requests == {exported[0].as_uri()}


def evaluate(page, function, argument=None):
    """`page.evaluate` by way of JSON: much faster for long lists, and typed arrays become lists."""
    plain = "(_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value)"
    expression = f"text => JSON.stringify(({function})(JSON.parse(text)), {plain})"
    return json.loads(page.evaluate(expression, json.dumps(argument)))


def drag(page, strokes):
    """What a hand with a mouse does."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        points = np.array([box["x"], box["y"]]) + np.array(stroke) * box["width"] / 280
        page.mouse.move(*points[0].tolist())
        page.mouse.down()
        for point in points[1:].tolist():
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def digit(page):
    return int(np.argmax(evaluate(page, "() => jaxmnist.state.probabilities")))


def test_it_computes_as_python_does(visit, exported, toy):
    """Centring, the model and the doubts, on one table of images."""
    page, rng = visit(), np.random.default_rng(0)
    inks = [rng.integers(0, 256, (n, n + n // 3)) for n in (1, 2, 19, 20, 28, 56, 100)]
    inks += [255 * (rng.random((n + 5, n)) < 0.1) for n in (19, 28, 100)]
    inks += [np.pad([[7]], ((0, 279), (140, 139))), np.pad([[7]], ((279, 0), (0, 279)))]
    function = "inks => inks.map(ink => jaxmnist.centre(ink.flat(), ink.length, ink[0].length))"
    found = evaluate(page, function, [ink.tolist() for ink in inks])
    for ink, image in zip(inks, found, strict=True):
        expected = centre(ink.astype(np.float32)).astype(int).ravel()
        np.testing.assert_allclose(image, expected, rtol=0, atol=1)

    images = np.stack(
        [*shapes(), *toy.images[:20], *map(np.uint8, np.reshape(found, (-1, 28, 28)))]
    )
    rows = images.reshape(-1, 784).tolist()
    expected = log_probabilities(exported[1], images)
    chances = evaluate(
        page, "rows => rows.map(r => jaxmnist.probabilities(jaxmnist.logits(r)))", rows
    )
    np.testing.assert_allclose(chances, np.exp(expected), rtol=0, atol=1e-5)
    sure = [[0.01] * 9 + [top] for top in (0.96, 0.9, 0.7)]
    cases = [[row, chances] for row in rows for chances in sure]
    doubts = evaluate(page, "cases => cases.map(([row, c]) => jaxmnist.doubt(row, c))", cases)
    python = [doubt(image, np.array(chances)) for image in images for chances in sure]
    assert [tuple(found or (None, None)) for found in doubts] == python
    assert len(set(python)) == 7  # five that are no digit, one that is uncertain, none


@pytest.mark.parametrize("size", [1, 0.35])
def test_a_mouse_draws_digits_of_any_size(visit, size):
    page = visit()
    drag(page, [140 + size * (np.array(stroke) - 140) for stroke in SEVEN])
    state = evaluate(page, "() => jaxmnist.state")
    assert len(state["strokes"]) == 2
    image = centre(np.reshape(state["ink"], (164, 164)).astype(np.float32)).ravel()
    np.testing.assert_allclose(state["image"], image.astype(int), rtol=0, atol=1)
    assert digit(page) == 7
    percents = [f"{100 * chance:.0f}\u00a0%" for chance in state["probabilities"]]
    assert page.locator("#chances li > :last-child").all_inner_texts() == percents
    assert page.locator("#chances .best").get_by_role("meter").get_attribute("aria-label") == "7"
    sync_api.expect(page.get_by_role("status")).to_contain_text(f"a 7, {percents[7]}")


def test_a_canvas_that_lies_changes_nothing(visit):
    """Some browsers falsify what a canvas gives back, against fingerprinting."""
    page = visit()
    page.evaluate("void (CanvasRenderingContext2D.prototype.getImageData = null)")
    assert evaluate(page, "() => jaxmnist.state.image") is None
    drag(page, SEVEN)
    assert digit(page) == 7


def test_it_says_that_a_dash_is_no_digit(visit):
    page = visit(viewport={"width": 320, "height": 568})
    drag(page, [[(60, 140), (220, 146)]])
    words = "Probably no single digit: it is wider than a digit"
    assert page.locator("#phrase").inner_text() == words
    sync_api.expect(page.get_by_role("status")).to_have_text(words)


def test_undo_and_clear(visit):
    page, counts = visit(), []
    press = page.keyboard.press
    for action in [
        lambda: drag(page, SEVEN),
        lambda: page.get_by_role("button", name="Undo").click(),
        lambda: press("Control+z"),
        lambda: press("Control+z"),  # nothing left to undo
        lambda: drag(page, SEVEN),
        lambda: page.get_by_role("button", name="Clear").click(),
        lambda: press("Meta+z"),  # brings back what was cleared
        lambda: press("Escape"),
    ]:
        action()
        counts.append(page.evaluate("jaxmnist.state.strokes.length"))
    assert counts == [2, 1, 0, 0, 2, 0, 2, 0]
    assert page.locator("#phrase").inner_text() == "Draw a digit, 0 to 9."


def test_a_digit_drawn_with_the_keyboard_alone(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.locator("#pen").is_visible()
    for key, times in [("ArrowUp", 7), (" ", 1), ("ArrowDown", 14), (" ", 1), ("ArrowLeft", 5)]:
        for _ in range(times):
            page.keyboard.press(key)
    assert [len(stroke) for stroke in evaluate(page, "() => jaxmnist.state.strokes")] == [15]
    drag(page, SEVEN)
    assert not page.locator("#pen").is_visible()


def test_a_finger_on_a_phone(visit):
    page = visit(viewport={"width": 360, "height": 740}, **PHONE)
    page.evaluate("document.body.style.minHeight = '3000px'")  # so that there is what to scroll
    box, session = page.locator("#pad").bounding_box(), page.context.new_cdp_session(page)
    for stroke in SEVEN:
        steps = ["touchStart"] + ["touchMove"] * (len(stroke) - 1)
        for kind, (x, y) in zip(steps, stroke, strict=True):
            place = {"x": box["x"] + box["width"] * x / 280, "y": box["y"] + box["width"] * y / 280}
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert digit(page) == 7
    assert page.evaluate("[scrollY, pad.width]") == [0, round(3 * box["width"])]


@pytest.mark.parametrize("size", [(568, 232), (844, 340), (320, 568), (360, 740), (1280, 800)])
def test_nothing_moves_and_nothing_is_cut(visit, size):
    width, height = size
    page = visit(viewport={"width": width, "height": height}, **(PHONE if width < 900 else {}))
    boxes = "[...document.querySelectorAll('#pad, button, #seen, #chances li')].map("
    boxes += "element => Object.values(element.getBoundingClientRect().toJSON()))"
    before = page.evaluate(boxes)
    drag(page, SEVEN)
    assert page.evaluate(boxes) == before
    assert all(0 <= x <= x + w <= width and y >= 0 for x, y, w, *_ in before)
    if width > height:
        assert page.evaluate("document.documentElement.scrollHeight") <= height


def test_the_browser_keeps_it_from_the_network(visit):
    page = visit()
    fetched = "fetch('https://example.invalid/').then(() => 'loaded', error => error.message)"
    assert page.evaluate(fetched) == "Failed to fetch"
