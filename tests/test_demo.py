"""The rendered street-scene set: true layouts and encodings, exact labels, same seed same bytes, foreign files safe."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

import config
from datasets import labels
from datasets.codec import decode_label
from datasets.domains import BUILTIN
from datasets.splits import find_pairs
from demo_world import Frame, Summary, render_frame, write, write_domains
from demo_world.__main__ import main
from demo_world.looks import LOOKS
from demo_world.painter import OVERSAMPLING, Camera, Painter, render
from demo_world.street import FEATURES, Street
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SIZE = (128, 256)
VAL = len(FEATURES)
RARE = {labels.CLASS_NAMES.index(name) for name in ("terrain", "truck", "train")}  # not in SYNTHIA
DOMAINS = sorted(write.FOLDERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return write_domains(tmp_path_factory.mktemp("demo") / "set", train=2, val=VAL, size=SIZE, seed=0, workers=2)


@functools.cache
def rendered(name: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of a validation frame of the set."""
    return render_frame(Frame(name, "val", number), size=SIZE, seed=0)


def first_label(made: Summary, pattern: str) -> str:
    return str(sorted(made.roots["gtav"].parent.glob(pattern))[0])


def palette_of(path: str) -> np.ndarray:
    image = Image.open(path)
    assert image.mode == "P"
    return np.array(image.getpalette()).reshape(-1, 3)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_is_found_and_decoded_by_its_own_row(made: Summary, name: str) -> None:
    domain = replace(BUILTIN[name], root=str(made.roots[name]))
    assert len(find_pairs(domain, "train")) == 2
    pairs = {pair.name: pair for pair in find_pairs(domain, "val")}
    assert len(pairs) == VAL
    for number in range(VAL):
        image, label = rendered(name, number)
        pair = pairs[Frame(name, "val", number).paths()[0]]
        assert np.array_equal(decode_label(pair.label, encoding=domain.encoding), label)
        read = np.asarray(Image.open(pair.image))
        assert read.shape == image.shape == (*label.shape, 3)
        lossless = pair.image.endswith(".png")
        assert np.array_equal(read, image) if lossless else np.abs(read.astype(float) - image).mean() < 12


@pytest.mark.parametrize("name", DOMAINS)
def test_the_folders_have_the_documented_names(made: Summary, name: str) -> None:
    folder, patterns = {
        "gtav": ("GTAV", ("images/train/*/*.png", "labels/valid/*/*.png")),
        "cityscapes": ("cityscapes", ("leftImg8bit_trainvaltest/leftImg8bit/train/*/*_leftImg8bit.png",
                                      "gtFine_trainvaltest/gtFine/val/*/*_gtFine_labelIds.png")),
        "bdd100k": ("bdd-100k", ("images/train/*.jpg", "labels/val/*.png")),
        "synthia": ("synthia", ("RGB/train/*.png", "GT/LABELS/val/*.png")),
        "mapillary": ("mapillary", ("training/images/*.jpg", "validation/labels/*.png")),
    }[name]  # fmt: skip
    assert made.roots[name].name == folder
    assert [len(list(made.roots[name].glob(pattern))) for pattern in patterns] == [2, VAL]


def test_gtav_labels_are_palette_files_of_35_cityscapes_ids(made: Summary) -> None:
    path = first_label(made, "GTAV/labels/valid/*/*.png")
    assert np.array_equal(palette_of(path), [colour for colour, _ in labels.CITYSCAPES_LABELS])
    assert {7, 11, 23} <= set(np.unique(np.asarray(Image.open(path)))) <= set(range(35))


def test_cityscapes_and_bdd_labels_are_grey(made: Summary) -> None:
    city, bdd = (
        Image.open(first_label(made, pattern))
        for pattern in ("cityscapes/gtFine_trainvaltest/gtFine/val/*/*.png", "bdd-100k/labels/val/*.png")
    )
    assert city.mode == bdd.mode == "L"
    assert {0, 7, 23} <= set(np.unique(np.asarray(city))) <= set(range(34))
    assert set(np.unique(np.asarray(bdd))) <= {*range(19), 255}


def test_synthia_labels_are_16_bit_rgb_with_the_class_in_red(made: Summary) -> None:
    path = first_label(made, "synthia/GT/LABELS/val/*.png")
    pixels = np.asarray(cv2.imread(path, cv2.IMREAD_UNCHANGED))
    assert pixels.dtype == np.uint16 and pixels.shape[2] == 3
    assert {1, 2, 3} <= set(np.unique(pixels[..., 2])) <= set(range(23)) and not pixels[..., 0].any()


def test_mapillary_labels_have_the_palette_of_v12_and_varying_sizes(made: Summary) -> None:
    palette = palette_of(first_label(made, "mapillary/validation/labels/*.png"))
    assert len(palette) == 256
    for raw, train in labels.MAPILLARY_IDS.items():
        if raw in (13, 15, 17, 19, 27, 30, 45, 48, 50, 55):
            assert np.array_equal(palette[raw], labels.PALETTE[train])
    sizes = {Image.open(path).size for path in made.roots["mapillary"].glob("validation/images/*.jpg")}
    assert len(sizes) > 2 and any(width < height for width, height in sizes)


def test_palettes_are_those_of_the_real_files(made: Summary, test_data: Path) -> None:
    samples = test_data / "data" / "samples"
    ours = palette_of(first_label(made, "GTAV/labels/valid/*/*.png"))
    real = palette_of(str(samples / "gtav" / "labels" / "00001.png"))
    used = [raw for raw, train in labels.CITYSCAPES_IDS.items() if train != labels.IGNORE]
    assert len(ours) == len(real) and np.array_equal(ours[used], real[used])
    config = json.loads((samples / "mapillary" / "config_v1.1.json").read_text())
    ours = palette_of(first_label(made, "mapillary/validation/labels/*.png"))
    assert np.array_equal(ours[:66], [row["color"] for row in config["labels"]])


@pytest.mark.parametrize("name", DOMAINS)
def test_all_classes_occur_in_every_split_of_eight_frames_with_a_long_tail(made: Summary, name: str) -> None:
    pixels = made.pixels[name][1]
    missing = {index for index in range(19) if pixels[index] == 0}
    assert missing == (RARE if name == "synthia" else set())
    shares = np.sort(pixels[:19] / pixels.sum())
    assert shares[-3:].sum() > 0.5 and shares[9] < 0.02


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", DOMAINS)
def test_labels_agree_with_what_is_rendered(name: str, number: int) -> None:
    """The same scene in label colours, anti-aliased, shows each pixel's label."""
    painter, _, _ = write.lay_out(Frame(name, "val", number), size=SIZE, seed=0)
    label = rendered(name, number)[1]
    colours = np.zeros((256, 3))
    colours[:19] = labels.PALETTE
    in_label_colours = Painter(
        painter.camera,
        [
            (layer, depth, [shape._replace(colour=tuple(colours[shape.label])) for shape in shapes])
            for layer, depth, shapes in painter.groups
        ],
    )
    drawing = render(in_label_colours, sky_label=write.SKY, sky_colour=tuple(colours[write.SKY]))
    shown = colours[label]
    pure = np.isin(_packed(drawing.image), _packed(colours))  # every other pixel mixes several classes
    assert pure.mean() > 0.8
    assert np.array_equal(drawing.image[pure], shown[pure])
    assert np.abs(drawing.image - shown).mean() < 12  # mixed ones hold their label's colour too
    for shift in ((0, 1), (1, 0)):
        assert np.abs(drawing.image - np.roll(shown, shift, (0, 1))).mean() > 1.5 * np.abs(drawing.image - shown).mean()


def _packed(colours: np.ndarray) -> np.ndarray:
    return np.asarray(colours.astype(int) @ (65536, 256, 1))


@pytest.mark.parametrize("name", DOMAINS)
def test_another_rasteriser_gives_the_same_labels(name: str) -> None:
    painter, _, _ = write.lay_out(Frame(name, "val", 5), size=SIZE, seed=0)
    label = rendered(name, 5)[1]
    height, width = label.shape
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING), write.SKY)
    pen = ImageDraw.Draw(canvas)
    for shape in painter.shapes():
        for contour in shape.contours:
            pen.polygon([tuple(point) for point in np.floor(contour * OVERSAMPLING)], fill=shape.label)
    middle = OVERSAMPLING // 2
    assert (np.asarray(canvas)[middle::OVERSAMPLING, middle::OVERSAMPLING] == label).mean() > 0.99


def fingerprint(image: np.ndarray, label: np.ndarray) -> tuple[str, list[float]]:
    """Return a hash of the label, and the mean of the image's values as they are and under three sets of random signs.

    Another processor rounds a value here and there to the other side: that moves a mean by 0.00001.
    """
    signs = np.random.RandomState(0).choice((-1.0, 1.0), (3, image.size))
    numbers = [image.mean(), *(signs @ image.ravel() / image.size)]
    return hashlib.sha256(label.tobytes()).hexdigest()[:16], [round(float(number), 5) for number in numbers]


PICTURES = {  # of label and image
    ("gtav", 2): ("caa8a7e99e3a4f05", [95.65629, 0.19148, 0.27122, 0.01029]),
    ("cityscapes", 3): ("bfda2d425fc95a33", [84.83576, 0.08796, 0.22967, 0.04941]),
    ("bdd100k", 1): ("3d5b18fde5657fd0", [43.83398, -0.0684, -0.05765, 0.29662]),
    ("bdd100k", 2): ("65a02e7a7adb0c54", [107.36164, -0.06575, 0.44688, 0.27701]),
    ("bdd100k", 6): ("dd319a29b6afe7bf", [71.69563, 0.02976, 0.31336, 0.22527]),
    ("synthia", 1): ("1eaa7efa34544910", [137.20786, -0.02898, 0.24369, 0.5737]),
    ("mapillary", 2): ("b9dc1b44659bf8bb", [162.82974, 0.08755, 0.84398, 0.24172]),
    ("mapillary", 4): ("1bfba15741ac8217", [173.06592, 0.49978, 0.53494, -0.11844]),
}


@pytest.mark.parametrize(("name", "number"), PICTURES)
def test_the_pictures_of_a_seed_stay_as_they_are(name: str, number: int) -> None:
    (label, numbers), (expected_label, expected) = fingerprint(*rendered(name, number)), PICTURES[name, number]
    assert label == expected_label, "raise VERSION in demo_world/write.py if the pictures are meant to change"
    np.testing.assert_allclose(numbers, expected, atol=5e-4)


def test_roads_bend_climb_fall_and_meet() -> None:
    streets = [
        Street(np.random.default_rng(number), look=LOOKS["gtav"][0], height=64, width=128, feature="bus")
        for number in range(40)
    ]
    cameras = [street.painter.camera for street in streets]
    for values in ([camera.bend for camera in cameras], [camera.rise for camera in cameras]):
        assert min(values) < 0 < max(values) and 0 in values
    meeting = [street.junction[0] for street in streets if len(street.blocks) == 2]
    assert 8 < len(meeting) < 32 and max(meeting) < 45


@pytest.mark.parametrize("rise", [-0.05, 0.0, 0.1])
def test_the_depth_of_the_ground_is_that_of_the_points_projected_there(rise: float) -> None:
    camera = Camera(height=200, width=300, focal=250, horizon=90, centre=150, x=0, y=1.5, bend=0.002, rise=rise)
    depths = np.array((4.0, 9.0, 30.0, 50.0))
    rows = camera.project(np.stack((np.zeros(4), np.zeros(4), depths), axis=-1))[:, 1]
    found = np.interp(rows, np.arange(200) + 0.5, camera.floor())
    assert np.allclose(found, depths, rtol=0.05)


@pytest.mark.parametrize("name", DOMAINS)
def test_the_look_moves_nothing(name: str) -> None:
    """The label explains the image best where it lies, not one or two pixels beside it."""
    image, label = render_frame(Frame(name, "train", 0), size=(256, 512), seed=3)
    grey = image.astype(float).mean(axis=2)
    unexplained = {}
    for dy, dx in [(0, 0), (-2, 0), (2, 0), (0, -2), (0, 2)]:
        moved = np.roll(label, (dy, dx), (0, 1))[4:-4, 4:-4].ravel()
        inner = grey[4:-4, 4:-4].ravel()
        counts = np.maximum(np.bincount(moved, minlength=256), 1)
        means = np.bincount(moved, inner, minlength=256) / counts
        unexplained[dy, dx] = ((inner - means[moved]) ** 2).mean()
    assert min(unexplained, key=lambda shift: unexplained[shift]) == (0, 0)


def test_domains_look_different() -> None:
    means = {}
    for name in DOMAINS:
        frames = [rendered(name, number)[0] for number in range(6)]
        pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames]).astype(float)
        colourful = np.abs(pixels - pixels.mean(axis=1, keepdims=True)).mean()
        means[name] = np.array([*pixels.mean(axis=0), *pixels.std(axis=0), colourful])
    for first in DOMAINS:
        for second in DOMAINS:
            assert first == second or np.abs(means[first] - means[second]).max() > 8, (first, second)


def _bytes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
        write_domains(tmp_path / name, train=1, val=1, size=(64, 128), seed=seed, workers=workers)
    one, two, other = (_bytes(tmp_path / name) for name in "abc")
    assert one == two
    assert one.keys() == other.keys() and not set(one.values()) & set(other.values())


def test_a_frame_depends_only_on_its_own_name_and_the_seed(made: Summary, tmp_path: Path) -> None:
    write_domains(tmp_path / "more", train=3, val=1, size=SIZE, seed=0, workers=0)
    few, more = _bytes(made.roots["gtav"]), _bytes(tmp_path / "more" / "GTAV")
    shared = {name for name in few.keys() & more.keys() if "train" in name}
    assert len(shared) == 4 and all(few[name] == more[name] for name in shared)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="photos.*did not make"):
        write_domains(foreign, train=1, val=1, size=(64, 128))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    with pytest.raises(UserError, match=r"^--sheet a\.pdf: the picture is a PNG file"):
        main(["--out", str(tmp_path / "set"), "--sheet", "a.pdf"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_own_folders_are_kept_or_replaced_unless_something_was_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "set"
    options = ["--out", str(out), "--train", "1", "--val", "1", "--size", "64x128"]
    main([*options, "--sheet", str(tmp_path / "sheet.png")])
    assert "bicycle" in capsys.readouterr().out and Image.open(tmp_path / "sheet.png").width > 1500
    before = _bytes(out)
    main(options)
    assert "there already" in capsys.readouterr().out and _bytes(out) == before
    main([*options, "--seed", "1"])
    assert _bytes(out) != before
    (out / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="did not make"):
        main(options)
    assert (out / "notes.txt").read_text() == "keep"
    (out / "notes.txt").rename(out / "GTAV" / "notes.txt")
    with pytest.raises(UserError, match=r"GTAV/notes\.txt: the demo did not make this"):
        main(options)
    assert (out / "GTAV" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["link", "mount", "working folder"])
def test_a_folder_is_replaced_or_refused_before_it_is_rendered(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    options: dict[str, Any] = {"train": 1, "val": 1, "size": (64, 128), "workers": 0}
    if place == "link":
        (tmp_path / "link").symlink_to("real")
        write_domains(tmp_path / "link", **options)
        assert (tmp_path / "link").is_symlink() and len(_bytes(tmp_path / "real")) > 10
        return
    if place == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "real")
    else:
        monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(UserError, match="real: a mount point or the working folder cannot be replaced"):
        write_domains(tmp_path / "real", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_call_goes_on_with_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    options = {"train": 2, "val": 1, "size": (64, 128)}
    whole = write_domains(tmp_path / "whole", **options, workers=2)  # type: ignore[arg-type]
    calls: list[Frame] = []

    def fail_at_the_eighth(frame: Frame, **given: Any) -> tuple[np.ndarray, np.ndarray]:
        calls.append(frame)
        if len(calls) == 8:
            raise error
        return render_frame(frame, **given)

    monkeypatch.setattr(write, "render_frame", fail_at_the_eighth)
    with pytest.raises((KeyboardInterrupt, UserError), match="No space.*resumes" if error.args else "^$"):
        write_domains(tmp_path / "set", **options, workers=0)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()
    left = sorted((tmp_path / ".set-unfinished").rglob("*.png"))
    left[0].write_bytes(left[0].read_bytes()[:-40])  # cut off
    left[-1].unlink()
    summary = write_domains(tmp_path / "set", **options, workers=0)  # type: ignore[arg-type]
    assert len(calls) == 8 + 15 - 7 + 2
    assert _bytes(tmp_path / "set") == _bytes(tmp_path / "whole")
    assert all(np.array_equal(summary.pixels[name], whole.pixels[name]) for name in DOMAINS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


def test_an_unfinished_set_of_other_options_is_not_mixed_in(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_domains(tmp_path / name, train=1, val=1, size=(64, 128), seed=seed, workers=0)
    (tmp_path / "a").rename(tmp_path / ".c-unfinished")
    write_domains(tmp_path / "c", train=1, val=1, size=(64, 128), seed=2, workers=0)
    assert _bytes(tmp_path / "b") == _bytes(tmp_path / "c")


@pytest.mark.parametrize(
    ("flags", "frames"),
    [([], (60, 20, (256, 512))), (["--size", "large"], (3000, 500, (512, 1024))),
     (["--size", "medium", "--val", "7"], (600, 7, (256, 512))), (["--size", "96x128"], (60, 20, (96, 128)))],
)  # fmt: skip
def test_sizes_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], frames: tuple[int, int, tuple[int, int]]
) -> None:
    asked: dict[str, Any] = {}

    def note(_: Path, **given: Any) -> Summary:
        asked.update(given)
        return Summary({}, 0, 0, {})

    monkeypatch.setattr("demo_world.__main__.write_domains", note)
    main(["--out", str(tmp_path / "set"), *flags])
    assert (asked["train"], asked["val"], asked["size"]) == frames


@pytest.mark.parametrize("flags", [["--size", "big"], ["--size", "8x8"], ["--train", "0"], ["--seed", "-1"]])
def test_impossible_options_are_refused(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(UserError, match=flags[0]):
        main(["--out", str(tmp_path / "set"), *flags])
    assert list(tmp_path.iterdir()) == []


def test_the_demo_script_uses_flags_that_exist_and_the_folders_written_here(made: Summary) -> None:
    text = (ROOT / "scripts" / "demo.sh").read_text().replace("\\\n", " ")
    folders = dict(re.findall(r'"DATASET\.(\w+)_DIR=\$data/([\w-]+)"', text))
    names = {"BDD": "bdd100k"}
    assert {names.get(key, key.lower()): folder for key, folder in folders.items()} == {
        name: root.name for name, root in made.roots.items()
    }
    (flags,) = re.findall(r'^ *"\$python" train\.py (.*)$', text, flags=re.M)
    words = [
        word.replace("$steps", "300")
        for word in shlex.split(flags)
        if word not in ("$@", "${domains[@]}", "--opts", "$half")
    ]
    for listed in re.findall(r"\bmethods=\((.*?)\)", text):
        for name in listed.split():
            values = [word.replace("${method}", name).replace("$method", name) for word in words]
            cfg = config.parse([word.replace("$seed", "305") for word in values], program="train")
            assert set(cfg.DATASET.VAL) == set(DOMAINS) - {"gtav"} and cfg.RUN.EXP == f"{name}_305"
    checked = re.search(r"-m scripts\.check_data ([\w ]+) --opts", text)
    assert checked is not None and sorted(checked[1].split()) == DOMAINS


def test_the_demo_script_trains_the_methods_that_are_named(tmp_path: Path) -> None:
    """A stub in Python's place makes the pictures that the script copies, and notes what it is asked to train."""
    (tmp_path / "scripts").mkdir()
    for name in ("demo.sh", "setup.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    stub = tmp_path / "stub.py"
    stub.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "words = sys.argv[1:]\n"
        "pathlib.Path('demo').mkdir(exist_ok=True)\n"
        "if words[0] == 'train.py':\n"
        "    runs, name = (words[words.index(flag) + 1] for flag in ('--date', '--exp'))\n"
        "    folder = pathlib.Path('demo', runs, name, 'time/pictures')\n"
        "    folder.mkdir(parents=True)\n"
        "    (folder / 'a.png').touch() if '--pictures' not in words else None\n"
    )
    stub.chmod(0o755)
    both = {f"{name}_{seed}" for name in ("isw", "diia-v2") for seed in (304, 305, 306)}
    few = {"base_304", "diia_304"}
    for methods, arguments, runs in (
        ("", [], few), ("", ["--pictures", "0"], few), ("isw diia-v2", ["--full"], both)
    ):  # fmt: skip
        env = {**os.environ, "DIIA_PYTHON": str(stub), "METHODS": methods}
        subprocess.run([str(tmp_path / "scripts" / "demo.sh"), *arguments], env=env, check=True, capture_output=True)
        assert {path.name for path in (tmp_path / "demo").glob("runs_*/*")} == runs
        shutil.rmtree(tmp_path / "demo")


def test_the_command_says_one_line_and_returns_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "demo_world", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
