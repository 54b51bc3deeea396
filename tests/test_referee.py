"""valid.py as referee: graphs of any program and folders of predictions get the numbers that anyone can compute."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from torch import Tensor, nn

import predict
import valid
from datasets.labels import CITYSCAPES_LABELS, NUM_CLASSES
from evaluation.graphs import Graph, LabelsGraph, LogitsGraph, Opened
from evaluation.predictions import match_files, tell_encoding
from evaluation.protocols import Inference
from inference import load
from tests.runs import launch, save_random
from tests.street_data import save, write_domain
from tests.test_export import onnx_or_skip
from utils.errors import ImageError, UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
MOMENTS = ("--mean", *map(str, MEAN), "--std", *map(str, STD))
SIZE = (64, 128)  # of Cityscapes' frames here
IMAGES = "leftImg8bit_trainvaltest/leftImg8bit/val"
TRAIN_OF = np.array([train for _, train in CITYSCAPES_LABELS], np.uint8)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames in Cityscapes' layout."""
    root = tmp_path_factory.mktemp("city")
    write_domain(root, "cityscapes", train=0, val=3)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    save_random(path, "--backbone", "timm/test_vit", "--method", "base")
    return path


def frames(city: Path) -> list[tuple[Tensor, np.ndarray]]:
    """Return images (1, 3, H, W) uint8 and train ids (H, W), read here."""
    pairs = []
    for path in sorted((city / IMAGES).rglob("*.png")):
        label = str(path).replace("leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine")
        ids = np.asarray(Image.open(label.replace("_leftImg8bit.png", "_gtFine_labelIds.png")))
        train = np.where(ids < len(TRAIN_OF), TRAIN_OF[np.minimum(ids, len(TRAIN_OF) - 1)], 255)
        pairs.append((torch.tensor(np.asarray(Image.open(path)).transpose(2, 0, 1))[None], train))
    assert len(pairs) == 3
    return pairs


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


def counted(city: Path, labels: Callable[[Tensor], np.ndarray]) -> np.ndarray:
    """Return the confusion matrix of a function from an image (1, 3, H, W) uint8 to labels (H, W), counted here."""
    total = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for image, truth in frames(city):
        kept = truth != 255
        total += sklearn.metrics.confusion_matrix(truth[kept], labels(image)[kept], labels=range(NUM_CLASSES))
    return total


def score(city: Path, out: Path, *words: str | Path) -> dict[str, Any]:
    flags = ("--val_dataset", "cityscapes", "--num_workers", "0", "--device", "cpu", "--no_quick_check")
    valid.main(
        [*flags, "--pictures", "1", "--out", str(out), *map(str, words), "--opts", f"DATASET.CITYSCAPES_DIR={city}"]
    )
    content: dict[str, Any] = json.loads((out / "scores.json").read_text())
    return content


def matrix(content: dict[str, Any]) -> np.ndarray:
    return np.array(content["domains"][0]["confusion"])


class Streets(nn.Module):
    """A small model: logits at a stride, of what it is built for."""

    def __init__(self, *, classes: int = 19, stride: int = 1, raw: bool = False, labels: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(3, classes, 5, stride, 2, bias=False)
        self.conv.weight.data = torch.randn(self.conv.weight.shape, generator=generator)
        self.raw, self.as_labels = raw, labels

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.conv(images.float() / 64 - 2 if self.raw else images)
        return logits.argmax(1) if self.as_labels else logits


def write_onnx(path: Path, model: nn.Module, *, size: tuple[int, int] = SIZE, free: bool = False) -> Path:
    onnx_or_skip()
    images = torch.zeros(2 if free else 1, 3, *size, dtype=torch.uint8 if getattr(model, "raw", False) else None)
    axes: Any = ({0: "batch", 2: "height", 3: "width"},) if free else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(model.eval(), (images,), dynamic_shapes=axes, dynamo=True, verbose=False)
    program.save(path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits of normalised images of any size."""
    return write_onnx(tmp_path_factory.mktemp("graph") / "streets.onnx", Streets(), free=True)


def test_torchvisions_deeplab_gets_the_matrix_that_anyone_computes(city: Path, tmp_path: Path) -> None:
    import onnxruntime
    import torchvision

    torch.manual_seed(0)
    build = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    model = build(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)
    with torch.no_grad():
        for _ in range(10):  # so that its batch norms have seen images and its predictions vary
            model.train()(normalised(torch.cat([image for image, _ in frames(city)])))
    path = write_onnx(tmp_path / "deeplab.onnx", model)
    content = score(city, tmp_path / "out", "--model", path, *MOMENTS)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    plain = counted(city, lambda image: session.run(None, {name: normalised(image).numpy()})[0][0].argmax(0))
    assert (matrix(content) == plain).all() and (plain.sum(0) > 0).sum() > 3
    with torch.no_grad():
        in_torch = counted(city, lambda image: model.eval()(normalised(image))["out"][0].argmax(0).numpy())
    assert np.abs(in_torch - plain).sum() <= 2e-3 * plain.sum()  # sums in another order: pixels at a tie
    about, protocol = content["weights"], content["domains"][0]["protocol"]
    assert (about["checkpoint"], about["method"]) == ("graph", "deeplab")
    assert "mean 0.5 0.4 0.3" in about["normalisation"]
    assert protocol["transform"] == "native size, every pixel" and protocol["images"] == 3


@pytest.mark.parametrize(
    ("flags", "views"),
    [
        ("", Inference()),
        ("--eval_protocol half", Inference(halved=True)),
        ("--eval_protocol sliding --window 48 64", Inference(window=(48, 64), stride=(36, 48))),
        ("--scales 0.5 1 --flip --bs_mult_val 3", Inference(scales=(0.5, 1.0), flip=True)),
    ],
)
def test_graphs_with_logits_take_every_protocol(
    flags: str, views: Inference, graph: Path, city: Path, tmp_path: Path
) -> None:
    content, model = score(city, tmp_path, graph, *flags.split(), *MOMENTS), Streets()
    with torch.no_grad():
        wanted = counted(city, lambda image: views(model, normalised(image))[0].argmax(0).numpy())
    assert np.abs(matrix(content) - wanted).sum() <= 1e-3 * wanted.sum()
    assert content["domains"][0]["protocol"]["scales"] == views.views and content["domains"][0]["loss"] > 0


def test_every_kind_of_graph(graph: Path, city: Path, tmp_path: Path) -> None:
    strided = write_onnx(tmp_path / "strided.onnx", Streets(stride=4))
    content = score(city, tmp_path / "strided", strided, *MOMENTS, "--bs_mult_val", "2")  # its batch is one
    assert content["domains"][0]["protocol"]["transform"].endswith("every pixel, logits resized bilinearly")
    with torch.no_grad():
        wanted = counted(
            city,
            lambda image: (
                nn.functional.interpolate(Streets(stride=4)(normalised(image)), SIZE, mode="bilinear")[0]
                .argmax(0)
                .numpy()
            ),
        )
    assert np.abs(matrix(content) - wanted).sum() <= 1e-3 * wanted.sum()
    with pytest.raises(UserError, match=r"takes images of 128x64 alone, this one has 64x48.*--window 64 128$"):
        score(city, tmp_path / "none", strided, *MOMENTS, "--eval_protocol", "sliding", "--window", "48", "64")
    assert not (tmp_path / "none").exists()
    half = write_onnx(tmp_path / "half.onnx", Streets(), size=(32, 64))
    score(city, tmp_path / "half", half, *MOMENTS, "--eval_protocol", "sliding", "--window", "32", "64")
    labels = write_onnx(tmp_path / "labels.onnx", Streets(raw=True, labels=True))
    content = score(city, tmp_path / "labels", "--snapshot", labels, "--more_metrics")
    with torch.no_grad():
        wanted = counted(city, lambda image: Streets(raw=True, labels=True)(image)[0].numpy())
    assert np.abs(matrix(content) - wanted).sum() <= 1e-3 * wanted.sum()
    row = content["domains"][0]
    assert row["loss"] is None and row["more"]["ece"] is None and row["more"]["boundary_iou_3"] > 0
    assert re.search(r"\| cityscapes .*\| +- +\|", (tmp_path / "labels" / "scores.md").read_text())
    with pytest.raises(UserError, match=r"labels\.onnx: returns labels, and --flip needs logits"):
        score(city, tmp_path / "none", labels, "--flip")
    for path, message in (
        (graph, "does not say how they are normalised; give --mean and --std"),
        (labels, "leave out"),
    ):
        with pytest.raises(UserError, match=message):
            score(city, tmp_path / "none", path, *(MOMENTS if path == labels else ()))


def test_a_domains_protocol_does_not_depend_on_those_before_it(city: Path, tmp_path: Path) -> None:
    class Fixed(Streets):
        """Logits of one size, that of Cityscapes' frames here, whatever the image's."""

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.interpolate(super().forward(images), SIZE)

    write_domain(tmp_path / "bdd", "bdd100k", train=0, val=2)
    native, resized = "native size, every pixel", "native size, every pixel, logits resized bilinearly"
    for model, of_city in ((Streets(stride=4), resized), (Fixed(), native)):
        path = write_onnx(tmp_path / "graph.onnx", model, free=True)
        for names in (("cityscapes", "bdd100k"), ("bdd100k", "cityscapes")):
            flags = ("--val_dataset", *names, "--opts", f"DATASET.BDD_DIR={tmp_path / 'bdd'}")
            rows = score(city, tmp_path / "out", path, *MOMENTS, *flags)["domains"]
            found = {row["domain"]: row["protocol"]["transform"] for row in rows}
            assert found == {"cityscapes": of_city, "bdd100k": resized}, names


def test_predict_and_python_take_graphs(graph: Path, city: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "out", frames(city)[0][0]
    with torch.no_grad():
        wanted = Streets()(normalised(image))[0]
    model = load(graph, device="cpu", mean=MEAN, std=STD)
    picture = image[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(model.segment(picture, probabilities=True), wanted.softmax(0).numpy(), atol=1e-4)
    assert model.map_names == ("labels", "probabilities", "confidence")
    predict.main([str(graph), str(city / IMAGES), "--out", str(out), "--device", "cpu", *MOMENTS])
    first = min((out / "train_ids").rglob("*.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(first)), model.segment(picture))
    labels = load(write_onnx(tmp_path / "labels.onnx", Streets(raw=True, labels=True)), device="cpu")
    assert labels.map_names == ("labels",) and labels.segment(picture).shape == SIZE
    with pytest.raises(UserError, match=r"this model gives labels, not probabilities"):
        labels.segment(picture, probabilities=True)
    with pytest.raises(UserError, match=r"--write edge: .*streets\.onnx has none"):
        predict.main([str(graph), str(city / IMAGES), "--out", str(tmp_path / "x"), "--write", "edge", *MOMENTS])


@pytest.mark.parametrize("kind", [LogitsGraph, LabelsGraph])
def test_a_protocol_names_half_precision(kind: type[LogitsGraph | LabelsGraph]) -> None:
    for weights, note in (("float16", ", in float16"), ("float32", "")):
        assert kind("g.onnx", Opened([], [], {"weights": weights}, Mock()), 0, Mock()).note == note


def test_images_that_a_graph_of_one_size_cannot_take_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = write_onnx(tmp_path / "one.onnx", Streets(raw=True))
    for name, size in (("a", SIZE), ("b", (32, 48)), ("c", SIZE)):
        save(tmp_path / "in" / f"{name}.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(SystemExit) as end:
        predict.main([str(graph), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert end.value.code == 1 and [path.stem for path in sorted((tmp_path / "out").rglob("*.png"))] == ["a", "c"]
    (told,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    assert re.search(r"in/b\.png: .*takes images of 128x64 alone, this one has 48x32: .*--window 64 128$", told)
    labels = write_onnx(tmp_path / "labels.onnx", Streets(raw=True, labels=True))
    with pytest.raises(UserError, match="export it with free height and width$"):  # no window helps there
        load(labels, device="cpu").segment(np.zeros((32, 48, 3), np.uint8))


def test_an_image_on_which_a_graph_fails_is_at_fault_alone(graph: Path) -> None:
    model = load(graph, device="cpu", mean=MEAN, std=STD)
    assert isinstance(model.network, Graph)
    opened = model.network.opened._replace(run=Mock(side_effect=RuntimeError("sizes do not match")))
    model = replace(model, network=replace(model.network, opened=opened))
    with pytest.raises(ImageError, match=r"cannot run on images of 48x32 \(.*sizes do not match"):
        model.segment(np.zeros((32, 48, 3), np.uint8))


def test_our_own_exports_get_the_numbers_of_the_weights(weights: Path, city: Path, tmp_path: Path) -> None:
    onnx_or_skip()
    from scripts import export

    own, names = matrix(score(city, tmp_path / "own", weights)), {"a.onnx": ["--logits"], "b.pt2": []}
    for name, flags in (names | {"c.pt2": ["--float", "--logits"]}).items():
        out, kind = str(tmp_path / name), name.partition(".")[2]
        export.main([str(weights), "--format", kind, "--size", "64", "128", "--out", out, *flags])
        content = score(city, tmp_path / f"scores_{name}", out)
        assert np.abs(matrix(content) - own).sum() <= 1e-3 * own.sum(), name
        assert content["weights"]["method"] == "base" and "test_vit" in content["weights"]["network"]
        assert content["domains"][0]["is_source"], "trained on Cityscapes, say the metadata"


def test_predictions_in_files_get_the_numbers_of_the_weights(weights: Path, city: Path, tmp_path: Path) -> None:
    own, out = score(city, tmp_path / "own", weights), tmp_path / "out"
    kinds = ("train_ids", "label_ids", "colour")
    predict.main([str(weights), str(city / IMAGES), "--out", str(out), "--device", "cpu", "--write", *kinds])
    (tmp_path / "server").mkdir()
    for path in (out / "label_ids").rglob("*.png"):
        shutil.copy(path, tmp_path / "server" / path.name.replace("_leftImg8bit.png", "_pred.png"))
    shutil.copytree(out / "colour", tmp_path / "several" / "cityscapes")
    rgb = tmp_path / "rgb"
    for path in (out / "colour").rglob("*.png"):
        (rgb / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(rgb / path.parent.name / path.name)
    cases: dict[str, tuple[Path, tuple[str, ...]]] = {
        "train_ids": (out, ()),
        "label_ids": (out, ("--prediction_encoding", "label_ids")),
        "colour": (tmp_path / "several", ()),
    }
    more = {"label_ids": (tmp_path / "server", ()), "colour": (rgb, ())}
    for kind, (folder, flags) in [*cases.items(), *more.items()]:
        content = score(city, tmp_path / "scores", "--predictions", folder, *flags, "--more_metrics")
        assert (matrix(content) == matrix(own)).all(), folder
        row = content["domains"][0]
        assert row["protocol"]["transform"] == f"native size, every pixel, predictions read as {kind}"
        assert row["protocol"]["list_hash"] == own["domains"][0]["protocol"]["list_hash"]
        assert row["loss"] is None and row["more"]["ece"] is None and row["more"]["boundary_f_1"] > 0
    labels = city / "gtFine_trainvaltest" / "gtFine" / "val"
    truth = score(city, tmp_path / "scores", "--predictions", labels, "--report")
    assert (truth["weights"]["checkpoint"], truth["weights"]["method"]) == ("predictions", "val")
    page = (tmp_path / "scores" / "report.html").read_text()
    assert "mean IoU 100.00 %, accuracy 100.00 %" in page and "nan" not in re.sub(r'base64,[^"]+', "", page)
    assert truth["domains"][0]["scores"]["accuracy"] == 1  # its pixels without a class are not labelled either


def test_small_predictions_are_resized_where_asked_for(weights: Path, city: Path, tmp_path: Path) -> None:
    def small(image: Tensor) -> np.ndarray:
        return np.asarray(image[0, 0, ::2, ::2] // 16, np.uint8)

    for number, (image, _) in enumerate(frames(city)):
        Image.fromarray(small(image)).save(tmp_path / f"aachen_{number:05d}_000019.png")
    with pytest.raises(UserError, match=r"000019\.png: is 64x32, its image 128x64; .* --resize_predictions nearest"):
        score(city, tmp_path / "out", "--predictions", tmp_path)
    content = score(city, tmp_path / "out", "--predictions", tmp_path, "--resize_predictions", "nearest")
    assert (matrix(content) == counted(city, lambda image: small(image).repeat(2, 0).repeat(2, 1))).all()
    assert content["domains"][0]["protocol"]["transform"].endswith("train_ids, resized by the nearest pixel")


def test_servers_get_what_they_take(weights: Path, city: Path, tmp_path: Path) -> None:
    own, found = matrix(score(city, tmp_path / "own", weights)), dict[str, list[str]]()
    for server in ("cityscapes", "acdc", "bravo"):
        out = tmp_path / server
        predict.main([str(weights), str(city / IMAGES), "--out", str(out), "--device", "cpu", "--submit", server])
        found[server] = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
        assert (matrix(score(city, tmp_path / "scores", "--predictions", out)) == own).all()
    shutil.copytree(tmp_path / "acdc" / "labelTrainIds", tmp_path / "several" / "train_ids" / "cityscapes")
    assert (matrix(score(city, tmp_path / "scores", "--predictions", tmp_path / "several")) == own).all()
    assert found["cityscapes"] == [f"aachen_0000{number}_000019.png" for number in range(3)]
    assert found["acdc"][0] == "labelTrainIds/aachen_00000_000019_leftImg8bit.png"
    assert found["bravo"][:2] == [f"aachen/aachen_00000_000019_leftImg8bit_{kind}.png" for kind in ("conf", "pred")]
    picture = frames(city)[0][0][0].permute(1, 2, 0).numpy()
    (maps,) = load(weights, device="cpu").maps([picture], ["labels", "confidence"])
    ids = np.asarray(Image.open(tmp_path / "cityscapes" / found["cityscapes"][0]))
    assert ids.dtype == np.uint8 and (TRAIN_OF[ids] == maps["labels"]).all()
    confidence = cv2.imread(str(tmp_path / "bravo" / found["bravo"][0]), cv2.IMREAD_UNCHANGED)
    assert confidence is not None and confidence.dtype == np.uint16
    assert np.abs(confidence / 65535 - maps["confidence"]).max() < 1e-5
    for flags, message in (
        (("--write", "colour"), "--submit acdc says what is written"),
        ((), r"\.png: several images would have this name"),
    ):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "cityscapes" / found["cityscapes"][0], tmp_path / "b")
        with pytest.raises(UserError, match=message):
            words = [str(weights), str(tmp_path / "cityscapes"), str(tmp_path / "b"), "--submit", "acdc", *flags]
            predict.main([*words, "--out", str(tmp_path / "none")])


def write_ids(folder: Path, *maps: list[int], mode: str = "L") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(maps):
        Image.fromarray(np.array([ids], np.uint8)).convert(mode).save(folder / f"{number:03d}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize(
    ("maps", "found"),
    [
        ([[0, 1, 7]], "train_ids"),
        ([[7, 8], [7, 23]], "label_ids"),
        ([[0, 7], [0, 26]], "label_ids"),  # with pixels of no class
        ([[7, 8]] * 40 + [[2]], "train_ids"),  # the sample does not tell, the last file does
        ([[7, 255, 18]], "train_ids"),
        ([[7, 8], [17]], "no other ids than 7 8 17, which may be .* --prediction_encoding train_ids or label_ids"),
        ([[0, 77]], r"000\.png: has 77, which are neither train ids \(0 to 18\) nor label ids"),
    ],
)
def test_ids_tell_their_encoding(maps: list[list[int]], found: str, tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        files = write_ids(tmp_path / mode, *maps, mode=mode)
        if found.endswith("ids") and " " not in found:
            assert tell_encoding(files, folder=tmp_path / mode) == found
            continue
        with pytest.raises(UserError, match=found):
            tell_encoding(files, folder=tmp_path / mode)
    if len(maps) == 2 and " " in found:
        assert tell_encoding(files, folder=Path("out/label_ids")) == "label_ids"  # a name as predict.py gives it


def test_files_are_matched_by_path_then_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    def files(*names: str) -> Path:
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        for name in names:
            (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "p" / name).touch()
        return tmp_path / "p"

    def match(folder: Path, *names: str) -> list[str]:
        found = match_files(folder, names, where="d/val")
        return [str(Path(found[name]).relative_to(folder)) for name in names]

    both = ("val/cam1/a.jpg", "val/cam2/a.jpg")
    assert match(files("cam1/a.png", "cam2/a.png", "cam3/a.png"), *both) == ["cam1/a.png", "cam2/a.png"]
    assert match(files("val/cam1/a.jpg.png", "val/cam2/a.png"), *both) == ["val/cam1/a.jpg.png", "val/cam2/a.png"]
    assert match(files("1.png", "10.png", "10_conf.png"), "val/1.jpg", "val/10.jpg") == ["1.png", "10.png"]
    assert match(files("val/f_1_pred.png"), "rgb/fog/val/GOPR/f_1_rgb_anon.png") == ["val/f_1_pred.png"]
    assert match(files("vis/f_1_rgb_anon.png", "f_1_pred.png"), "fog/f_1_rgb_anon.png") == ["f_1_pred.png"]
    for names, message in (
        (("a.png",), r"a\.png: belongs to 2 images of d/val by its name \(val/cam1/a\.jpg, val/cam2/a\.jpg\)"),
        (("kitti/a.png",), r"p: 2 of the 2 images of d/val have no prediction"),  # another domain's
        (("train/a_pred.png",), r"p: 2 of the 2 images of d/val have no prediction: .* in folders that it is in too"),
        (("cam1/a.png",), r"p: 1 of the 2 images of d/val have no prediction: val/cam2/a\.jpg"),
        (("a_x.png", "a_y.png"), r"2 images of d/val have several predictions, val/cam1/a\.jpg has .*a_x.*a_y"),
    ):
        with pytest.raises(UserError, match=message):
            match(files(*names), *both)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{here}", "{here}"),
        ("{here}/none.onnx", r"none\.onnx: there is no such file"),
        ("{here}/text.onnx", r"text\.onnx: is no model that can be opened \("),
        ("--model {here}/cut.onnx", r"cut\.onnx: is no model that can be opened \("),
        ("{here}/text.pt2", r"text\.pt2: is no model that can be opened \("),
        ("{here}/task.onnx {moments}", r"task\.onnx: its outputs are .*21.* where logits \(N, 19, H, W\) or labels"),
        ("{here}/cut.onnx --snapshot {weights}", "are two files; give one of them"),
        ("", "nothing to evaluate: give a weight file, --model FILE.onnx or --predictions DIR"),
        ("--predictions {here}/none", "there is no such folder"),
        ("--predictions {here}/missing", "1 of the 3 images of cityscapes/val have no prediction: leftImg8bit_train"),
        ("--predictions {here}/outside", r"aachen_00001_000019\.png: has 77, which are neither"),
        ("--predictions {here}/blank", "pixels that are labelled have no class in the prediction"),
        ("--predictions {here}/blank --prediction_encoding colour", "a grey image where .*colours"),
        ("--predictions {here}/text", r"aachen_0000\d_000019\.png: .*not an image"),
        ("--predictions {here}/blank --model {here}/cut.onnx", "are two things to evaluate; give one of them"),
        ("--predictions {here}/blank --snapshot {weights}", "are two things to evaluate"),
        ("--predictions {here}/blank --eval_protocol half --flip", "^--eval_protocol, --flip: is for what computes"),
        ("{weights} --out {here}/text.onnx/x", "the folder cannot be made"),
        ("{weights} --resize_predictions nearest", "--resize_predictions belongs to --predictions"),
        ("{weights} more", "belongs to no flag"),
        ("{graph} {moments} --fp16", r"--amp auto: .*streets\.onnx computes in the precision"),
        ("{graph} {moments} --visualize_feature", "--visualize_feature: shows what networks of ours compute"),
    ],
)
def test_bad_inputs_are_one_sentence_and_leave_nothing(
    words: str, message: str, graph: Path, weights: Path, city: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.pt2").write_text("text")
    (tmp_path / "cut.onnx").write_bytes(graph.read_bytes()[:200])
    if "task" in words:
        write_onnx(tmp_path / "task.onnx", Streets(classes=21))
    for name in ("missing", "outside", "blank", "text"):
        (tmp_path / name).mkdir()
        for number in range(2 if name == "missing" else 3):
            ids = np.full(SIZE, 255 if name == "blank" else 3, np.uint8)
            ids[0, 0] = 77 if name == "outside" and number == 1 else 2
            path = tmp_path / name / f"aachen_{number:05d}_000019.png"
            Image.fromarray(ids).save(path) if name != "text" else path.write_text("text")
    before = sorted(tmp_path.rglob("*"))
    places = {"here": tmp_path, "graph": graph, "weights": weights, "moments": " ".join(MOMENTS)}
    with pytest.raises(UserError, match=message.format(**places) if "{" in message else message) as error:
        score(city, tmp_path / "out", *words.format(**places).split())
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_bad_inputs_end_with_exit_code_2(city: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    done = launch("valid.py", [str(tmp_path / "text.onnx"), "--val_dataset", "cityscapes"], check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "text.onnx" in done.stderr


def test_an_error_has_a_line_of_its_own(city: Path, tmp_path: Path) -> None:
    """The bar of the evaluation that it ends is wiped first."""
    for number in range(3):
        Image.fromarray(np.full((8, 8), 2, np.uint8)).save(tmp_path / f"aachen_{number:05d}_000019.png")
    flags = ["--val_dataset", "cityscapes", "--opts", f"DATASET.CITYSCAPES_DIR={city}", "--device", "cpu"]
    done = launch("valid.py", ["--predictions", str(tmp_path), *flags, "--out", str(tmp_path / "out")], check=False)
    shown = done.stderr.splitlines()[-1]  # a return ends a line too
    assert done.returncode == 2 and shown.startswith("error: ") and "--resize_predictions nearest" in shown
