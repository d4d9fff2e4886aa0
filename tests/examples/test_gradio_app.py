"""examples/gradio_app.py, served and asked: by gradio's own client over HTTP, and by a browser where there is one."""

import io
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_oneflow import demo_model
from diffusers_oneflow.demo.compare import difference

gradio_app = pytest.importorskip("gradio_app", reason="gradio is not installed: it is in the extra 'examples'")

PROMPT, SEED = "a small green triangle below a large pink heart", 3
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address():
    blocks = gradio_app.page(demo_model())
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    yield address
    blocks.close()


@pytest.fixture
def expected(demo_pipe):
    """expected(steps): torch's image."""

    def draw(steps: int) -> Image.Image:
        return demo_pipe(PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(SEED)).images[0]

    return draw


def test_every_step_moves_the_bar():
    draw = gradio_app.drawing(demo_model(), "torch")
    moved = []
    draw(PROMPT, 3, SEED, progress=lambda at, desc, unit=None: moved.append((at, desc)))
    assert moved == [(0, "torch"), *(((step, 3), "torch") for step in (1, 2, 3))]


def test_both_backends_answer_over_http(address, expected, tmp_path):
    from gradio_client import Client

    client = Client(address, verbose=False, download_files=str(tmp_path))
    image = expected(4)
    for name in gradio_app.BACKENDS:
        file, seconds = client.predict(PROMPT, 4, SEED, api_name=f"/{name}")
        assert re.fullmatch(r"\d+\.\d\d(, \d+\.\d\d of them to compile)?", seconds)
        assert difference(Image.open(file).convert("RGB"), image) <= 1
    assert np.ptp(np.asarray(image)) > 100


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")
def test_the_page_draws_in_a_browser(address, expected):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it is in the extra 'test'")
    steps, strangers = 50, []  # some seconds, so that bars are seen on their way
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

    def local_only(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        strangers.append(route.request.url)
        return route.abort()

    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.route("**/*", local_only)
        page.goto(address, wait_until="domcontentloaded")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("Seed").fill(str(SEED))
        page.get_by_label("number input for Steps").fill(str(steps))
        # What the bars say is gone when the images are there.
        page.evaluate("""() => {
            window.said = "";
            new MutationObserver(() => { window.said += document.body.innerText }).observe(
                document.body, {subtree: true, childList: true, characterData: true});
        }""")
        page.get_by_role("button", name="Draw").click()
        levels = page.get_by_label("Largest difference of a pixel, of 255")
        sync.expect(levels).to_have_value(re.compile(r"^[01]$"), timeout=120_000)
        image = expected(steps)
        for name in gradio_app.BACKENDS:
            drawn = page.request.get(page.locator(f"#image-{name} img").get_attribute("src")).body()
            assert difference(Image.open(io.BytesIO(drawn)).convert("RGB"), image) <= 1
            assert re.match(r"\d+\.\d\d", page.get_by_label(f"Seconds on {name}").input_value())
            assert re.search(rf"{name} - [1-9]\d?\.\d%", page.evaluate("window.said"))
        browser.close()
    assert not strangers
