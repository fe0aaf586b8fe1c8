"""The page at "/": its headers, and what a person does with it in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import time

import keras
import numpy as np
import pytest
from endpoints import call, get
from keras import layers
from PIL import Image

from keras_convnets.card import card_of_model
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats.saved_model import write_saved_model
from keras_convnets.export.serving import ModelServer
from keras_convnets.export.serving.rest import page

# A class's name is data: it must be shown, never read as HTML.
NAMES = ("red", "<b>green</b>", "blue")


def save_planted(folder):
    """A network whose scores are ten times the means of the three channels, whose maps are the channels."""
    images = keras.Input([32, 32, 3], name="images")
    x = layers.AveragePooling2D(8)(layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    model.layers[-1].set_weights([10 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    write_saved_model(inference_network(model), card_of_model(model, NAMES), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    save_planted(root / "colours" / "1")
    shutil.copytree(root / "colours" / "1", root / "colours" / "2")
    return {"colours": root / "colours", "more": root / "colours"}


@pytest.fixture(scope="module")
def server(models):
    with ModelServer(models, port=0, rest_api_port=0) as running:
        yield running


def red_corner(path, size=(96, 64), kind="PNG", **options):
    """A picture of 96 by 64 pixels that is red at the top left and grey elsewhere."""
    pixels = np.full((64, 96, 3), 40, np.uint8)
    pixels[:32, :48] = (250, 0, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, kind, **options)
    path.write_bytes(stream.getvalue())
    return path


def test_the_page_and_its_policy(server):
    status, headers, body = call(server, "GET", "/")
    text = body.decode()
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.own_policy(), f"write this hash of the {tag} into the page"
    policy = headers["Content-Security-Policy"]
    assert policy == page.own_policy().replace("http: https:", "'self'") + "; frame-ancestors 'none'"
    assert policy.startswith("default-src 'none'; ")
    # Nothing is fetched from elsewhere, and no name becomes HTML.
    assert not re.search(r"""(src|href)=["'](https?:)?//|innerHTML|insertAdjacentHTML|document\.write|eval\(""", text)


@pytest.mark.parametrize(
    "query, connects",
    [
        ("?server=https://models.example.org:8501/vision", "https://models.example.org:8501"),
        ("?server=http%3A%2F%2F%5B%3A%3A1%5D%3A8501", "http://[::1]:8501"),
        ("?server=http://a.example;script-src%20*", "http://a.example"),
        ("?server=javascript:alert(1)", "'self'"),
        ("?server=*", "'self'"),
        ("?model=colours", "'self'"),
    ],
)
def test_the_page_connects_to_one_server(server, query, connects):
    policy = call(server, "GET", f"/{query}")[1]["Content-Security-Policy"]
    assert re.findall("connect-src ([^;]*);", policy) == [connects]
    assert policy.count("script-src") == 1


def test_models_are_listed_for_the_page(server):
    assert get(server, "/page/models") == (200, {"models": ["colours", "more"]})
    assert call(server, "POST", "/", b"")[0] == call(server, "GET", "/page")[0] == 404


def test_the_page_can_be_turned_off(models):
    with ModelServer(models, port=0, rest_api_port=0, page=False) as without:
        assert call(without, "GET", "/")[0] == call(without, "GET", "/page/models")[0] == 404


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with a camera of moving test pictures."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1100,900"):
        options.add_argument(f"--{flag}")
    for flag in ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(service=webdriver.ChromeService(driver), options=options)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Page:
    """The page in a browser, by what a person sees of it."""

    def __init__(self, browser, server, query=""):
        self.browser = browser
        browser.get(f"http://127.0.0.1:{server.rest_api_port}/{query}")

    def until(self, condition):
        end = time.monotonic() + 20
        while not (found := condition()):
            assert time.monotonic() < end, self.text("main")
            time.sleep(0.05)
        return found

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        return self.one(selector).text

    def ready(self):
        self.until(lambda: "is ready" in self.text("#status"))
        return self

    def upload(self, *paths):
        self.one("#file").send_keys("\n".join(map(str, paths)))

    def focused(self):
        return self.browser.execute_script("return document.activeElement.id || document.activeElement.className")

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()


def test_a_photograph_is_uploaded_and_classified(browser, server, tmp_path):
    shown = Page(browser, server).ready()
    assert shown.text("#status") == "colours, version 2, is ready."
    assert [option.text for option in shown.all("#version option")] == ["newest", "2"]
    shown.upload(red_corner(tmp_path / "<i>corner.png"), red_corner(tmp_path / "second.png"))
    shown.until(lambda: len(shown.all("article .class")) == 6)
    first = shown.all("article")[-1]
    lines = first.text.splitlines()
    assert lines[0] == "<i>corner.png" and re.fullmatch(r"colours, \d+ ms", lines[1])
    # The network sees the 64 by 64 pixels of the middle, a quarter of which are red.
    means = np.array([0.25 * 250 + 0.75 * 40, 0.75 * 40, 0.75 * 40]) / 255
    scores = np.exp(10 * means) / np.exp(10 * means).sum()
    # Resizing blurs the edges of the corner.
    assert float(lines[3].removesuffix(" %")) == pytest.approx(100 * scores[0], abs=1)
    assert {lines[2], lines[4], lines[6]} == set(NAMES) and lines[2] == "red"


def test_where_the_network_looks(browser, server, tmp_path):
    shown = Page(browser, server).ready()
    shown.upload(red_corner(tmp_path / "corner.png"))
    shown.until(lambda: len(shown.all("button.class")) == 3)
    assert not shown.one("canvas").is_displayed()
    shown.one("button.class").click()
    assert shown.one("canvas").is_displayed() and "red" in shown.one("canvas").get_attribute("aria-label")
    box, picture = shown.one("canvas").rect, shown.one("figure img").rect
    assert box["height"] == pytest.approx(picture["height"], abs=2)
    assert box["width"] == pytest.approx(picture["width"] * 64 / 96, abs=2)
    assert box["x"] - picture["x"] == pytest.approx(picture["width"] * 16 / 96, abs=2)
    bright = """const [canvas, x, y] = [document.querySelector("canvas"), arguments[0], arguments[1]];
        const at = [x * canvas.width, y * canvas.height].map(Math.floor);
        return Array.from(canvas.getContext("2d").getImageData(...at, 1, 1).data).slice(0, 3).reduce((a, b) => a + b)"""
    corners = [browser.execute_script(bright, x, y) for x, y in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9))]
    assert corners[0] > 500 and max(corners[1:]) < 100
    shown.one("button.class").click()
    assert not shown.one("canvas").is_displayed()
    shown.one(".switch input").click()
    assert shown.one("canvas").is_displayed()


def test_a_photograph_that_lies_on_its_side_is_turned(browser, server, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: red lies at the top left of the file, at the bottom right of the photograph
    shown = Page(browser, server).ready()
    shown.upload(red_corner(tmp_path / "turned.jpg", kind="JPEG", exif=exif, quality=95))
    shown.until(lambda: shown.all("button.class"))
    shown.one("button.class").click()
    bright = """const canvas = document.querySelector("canvas"), context = canvas.getContext("2d");
        const sum = (x, y) => Array.from(context.getImageData(x, y, 1, 1).data).slice(0, 3).reduce((a, b) => a + b);
        return [sum(9, 9), sum(canvas.width - 9, canvas.height - 9)]"""
    top_left, bottom_right = browser.execute_script(bright)
    assert bottom_right > 500 and top_left < 100


def test_what_fails_is_said_in_words(browser, models, tmp_path):
    (tmp_path / "letter.png").write_text("this is no image")
    with ModelServer(models, port=0, rest_api_port=0) as server:
        shown = Page(browser, server).ready()
        shown.upload(tmp_path / "letter.png")
        shown.until(lambda: shown.all("article .error"))
        assert "letter.png" in shown.text("#status") and shown.text("article .error") in shown.text("#status")
        assert re.match(r"[^{}]*image[^{}]*\.$", shown.text("article .error")), "a sentence, and no node names"
    shown.upload(red_corner(tmp_path / "corner.png"))
    shown.until(lambda: "does not answer. Is the server running?" in shown.text("#status"))


def test_a_phone_shows_it_without_scrolling_sideways(browser, server, tmp_path):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        shown = Page(browser, server).ready()
        shown.upload(red_corner(tmp_path / f"{'long' * 20}.png"))
        shown.until(lambda: shown.all("button.class"))
        shown.one("summary").click()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        for target in shown.all("button:not(#camera button), .button, select, button.class"):
            assert target.rect["height"] >= 36, target.text
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_reaches_everything(browser, server, tmp_path):
    from selenium.webdriver.common.keys import Keys

    shown = Page(browser, server).ready()
    shown.upload(red_corner(tmp_path / "corner.png"))
    shown.until(lambda: shown.all("button.class"))
    browser.execute_script("document.getElementById('model').focus()")
    reached = [shown.focused()]
    for _ in range(8):
        shown.press(Keys.TAB)
        reached.append(shown.focused())
    assert [*reached[:2], *reached[3:5]] == ["model", "version", "file", "open-camera"], reached
    assert reached[5:8] == ["class"] * 3
    while shown.focused() != "class":
        shown.press(Keys.SHIFT, Keys.TAB, Keys.NULL)
    shown.press(Keys.ENTER)
    assert shown.one("canvas").is_displayed()


def test_the_camera(browser, server):
    shown = Page(browser, server).ready()
    shown.one("#open-camera").click()
    shown.until(lambda: shown.one("#shoot").is_displayed())
    shown.until(lambda: browser.execute_script("return document.getElementById('video').videoWidth") > 0)
    shown.one("#shoot").click()
    shown.until(lambda: shown.all("button.class"))
    shown.one("#close-camera").click()
    assert not shown.one("#shoot").is_displayed() and shown.text("article h2") == "camera.jpg"


def test_the_policy_forbids_other_requests(browser, server, models):
    fetched = """const done = arguments[1];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        fetch(arguments[0]).then(() => done("fetched")).catch(() => setTimeout(() => done("failed"), 2000))"""
    with ModelServer(models, port=0, rest_api_port=0, rest_api_enable_cors_support=True) as other:
        Page(browser, server).ready()
        assert browser.execute_async_script(fetched, other.url("colours")) == "connect-src"
        assert browser.execute_async_script(fetched, server.url("colours")) == "fetched"


def test_the_page_against_another_server(browser, server, models, tmp_path):
    with ModelServer(models, port=0, rest_api_port=0, page=False, rest_api_enable_cors_support=True) as other:
        shown = Page(browser, server)
        shown.ready().one("summary").click()
        shown.one("#server").send_keys(f"http://127.0.0.1:{other.rest_api_port}/")
        shown.one("#server-form button").click()
        shown.until(lambda: "Enter the model's name" in shown.text("#status"))
        shown.one("#name").send_keys("colours\t")
        shown.ready().upload(red_corner(tmp_path / "corner.png"))
        shown.until(lambda: len(shown.all("button.class")) == 3)
    with ModelServer(models, port=0, rest_api_port=0) as closed:
        # A server that does not allow other origins.
        shown = Page(browser, server, f"?server=http://127.0.0.1:{closed.rest_api_port}&model=colours")
        shown.until(lambda: "rest_api_enable_cors_support" in shown.text("#status"))


def test_light_and_dark(browser, server):
    colours = []
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        Page(browser, server).ready()
        found = browser.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        colours.append([np.mean(list(map(int, re.findall(r"\d+", text)[:3]))) for text in found])
    (text, ground), (dark_text, dark_ground) = colours
    assert ground - text > 150 and dark_text - dark_ground > 150
