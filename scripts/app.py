"""`python -m scripts.app WEIGHTS`: a page in the browser that segments the image that is dropped on it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from utils import program_parser
from utils.errors import UserError, reason, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.app",
        "Open a page in the browser that segments the image dropped on it.",
        details="Needs pip install -r requirements-app.txt. Ctrl-C ends it.",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="what predict.py takes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import numpy as np

from datasets.labels import CLASS_NAMES, PALETTE
from datasets.predict_files import KINDS
from inference import Model, load
from utils.pictures import Array

TITLES = {"confidence": "Confidence", "edge": "DIIA's edge map", "layout": "DIIA's coarse layout"}  # maps, drawn alike


def build_page(model: Model, *, title: str) -> Any:
    """Return the page (gradio.Blocks): an image in; classes laid over it, confidence and what else the model gives."""
    import gradio

    names = [name for name in model.map_names if name in TITLES]
    colours = {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in zip(CLASS_NAMES, PALETTE, strict=True)}

    def segment(image: Array | None) -> list[Any]:
        if image is None:
            return [None] * (1 + len(names))
        try:
            maps = model.maps([image], ["labels", *names])[0]
        except UserError as error:
            raise gradio.Error(str(error)) from error
        labels, shares = maps["labels"], np.bincount(maps["labels"].ravel(), minlength=len(CLASS_NAMES))
        regions = [(labels == number, CLASS_NAMES[number]) for number in np.argsort(-shares) if shares[number]]
        return [(image, regions), *(KINDS[name].draw(image, maps[name], 1) for name in names)]

    with gradio.Blocks(title=title) as page:
        gradio.Markdown(f"{model.network.describe()}. Images stay on this machine.")
        with gradio.Row():
            picked = gradio.Image(label="Image: drop, paste or choose", image_mode="RGB", type="numpy")
            classes = gradio.AnnotatedImage(label="Classes", color_map=colours)
        with gradio.Row():
            others = [gradio.Image(label=TITLES[name], interactive=False, format="png", height=300) for name in names]
        picked.change(segment, picked, [classes, *others], api_name="segment")
    return page


def serve(page: Any, *, wait: bool = True, **where: Any) -> str:
    """Serve the page and return its address; `where` is server_name and server_port of gradio."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # its own are downloaded
    return str(page.launch(theme=theme, prevent_thread_lock=not wait, footer_links=["api"], **where)[1])


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"scripts.app: {error}; pip install -r requirements-app.txt") from error
    page = build_page(load(args.weights, device=args.device), title=os.path.basename(args.weights))
    try:
        serve(page, server_name=args.host, server_port=args.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {args.host} --port {args.port}: cannot listen there ({reason(error)})") from error


if __name__ == "__main__":
    run_entry_point(main)
