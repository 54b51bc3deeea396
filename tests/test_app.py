"""scripts/app.py: what is missing is said, and the page, in headless Chromium, shows what the model gives."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference import load
from scripts import app
from tests.runs import save_random
from utils.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "diia.pth"
    save_random(path, "--backbone", "resnet18", "--method", "diia")
    return path


def test_without_gradio_the_requirement_file_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-app\.txt"):
        app.main([str(weights)])


def test_a_taken_port_is_a_sentence(weights: Path) -> None:
    pytest.importorskip("gradio", reason="needs requirements-app.txt")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: cannot listen there"):
            app.main([str(weights), "--device", "cpu", "--port", str(port)])


def test_the_page_in_a_browser(weights: Path, tmp_path: Path) -> None:
    """An image that is dropped shows its classes with their shares first, confidence, edge map and layout."""
    pytest.importorskip("gradio", reason="needs requirements-app.txt")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium")
    street = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(street).save(tmp_path / "street.png")
    model = load(weights, device="cpu")
    page = app.build_page(model, title="<b>weights</b>.pth")
    address = app.serve(page, wait=False)
    elsewhere = list[str]()

    def note(request: Any) -> None:
        if "127.0.0.1" not in request.url and not request.url.startswith(("data:", "blob:")):
            elsewhere.append(request.url)

    try:
        with playwright.sync_playwright() as run:
            tab = run.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
            tab.on("request", note)
            tab.goto(address)
            tab.set_input_files("input[type=file]", tmp_path / "street.png")
            tab.get_by_alt_text("segmentation mask identifying").first.wait_for(timeout=60_000)
            text = tab.inner_text("body")
            pictures = tab.locator("img").count()
    finally:
        page.close()
    assert not elsewhere, "the page works without a network"
    labels = model.segment(street)
    for number in np.unique(labels):
        assert app.CLASS_NAMES[number] in text
    assert all(title in text for title in app.TITLES.values())
    assert pictures >= 1 + len(app.TITLES)
