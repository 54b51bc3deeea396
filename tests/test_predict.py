"""predict.py: every kind of input and output, what it refuses, several processes, videos."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

import predict
from datasets.labels import CITYSCAPES_LABELS, PALETTE
from datasets.predict_files import find_files, open_video
from inference import Model, load
from tests.runs import launch, read_weights, save_random
from utils.errors import UserError

RNG = np.random.default_rng(0)
STREETS = [RNG.integers(0, 256, (32 + 16 * (number % 2), 48, 3), dtype=np.uint8) for number in range(4)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "base.pth"
    save_random(path, "--backbone", "timm/test_vit", "--method", "base")
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return load(weights, device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four images of two sizes, of which two names occur in two folders, and a file that is no image."""
    folder = tmp_path / "images"
    names = ("cam1/a.png", "cam1/b.bmp", "cam2/a.png", "cam2/deep/b.tif")
    for name, street in zip(names, STREETS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(street).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def run(weights: Path, out: Path, *words: str | Path) -> dict[str, np.ndarray]:
    """Run the program and return what it wrote, by relative name."""
    predict.main([str(weights), *map(str, words), "--out", str(out), "--device", "cpu"])
    return written(out)


def written(out: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        with Image.open(path) as image:
            found[str(path.relative_to(out))] = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return found


def test_a_folder_becomes_train_ids_under_the_same_names(weights: Path, model: Model, images: Path) -> None:
    found = run(weights, images / "out", images)
    names = ("cam1/a", "cam1/b", "cam2/a", "cam2/deep/b")
    assert list(found) == [f"train_ids/{name}.png" for name in names]
    for labels, street in zip(found.values(), STREETS, strict=True):
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, model.segment(street))
    out = images / ".." / images.name / "out"
    again = run(weights, out, images, "--force", "--bs_mult_val", "3")  # does not read its own results
    assert list(again) == list(found)


def test_flags_of_the_evaluation_reach_the_network(weights: Path, images: Path, tmp_path: Path) -> None:
    flags = ("--scales", "0.5", "1", "--flip", "--average", "logits", "--amp", "bf16")
    found = run(weights, tmp_path / "out", images / "cam1" / "a.png", *flags)["train_ids/a.png"]
    views = load(weights, device="cpu", scales=[0.5, 1], flip=True, average="logits", amp="bf16")
    np.testing.assert_array_equal(found, views.segment(STREETS[0]))
    assert not np.array_equal(found, load(weights, device="cpu").segment(STREETS[0]))


def test_every_kind_is_what_its_name_says(tmp_path: Path) -> None:
    save_random(tmp_path / "diia.pth", "--backbone", "timm/test_vit", "--method", "diia-no-whitening")
    street = STREETS[0]
    Image.fromarray(street).save(tmp_path / "a.png")
    flags = ("--opacity", "0.25", "--write", *predict.KINDS)
    found = run(tmp_path / "diia.pth", tmp_path / "out", tmp_path / "a.png", *flags)
    assert {name.partition("/")[0] for name in found} == set(predict.KINDS) and len(found) == len(predict.KINDS)
    maps = load(tmp_path / "diia.pth", device="cpu").maps([street], ["labels", "confidence", "edge", "layout"])[0]
    labels, picture = maps["labels"], {name.partition("/")[0]: array for name, array in found.items()}
    np.testing.assert_array_equal(picture["train_ids"], labels)
    np.testing.assert_array_equal(np.array([train for _, train in CITYSCAPES_LABELS])[picture["label_ids"]], labels)
    np.testing.assert_array_equal(picture["colour"], PALETTE[labels])
    assert np.abs(picture["overlay"] - (0.75 * street + 0.25 * PALETTE[labels])).max() <= 0.5
    np.testing.assert_array_equal(picture["side_by_side"][:, :48], street)
    np.testing.assert_array_equal(picture["side_by_side"][:, 48:], PALETTE[labels])
    assert np.abs(picture["confidence"] / 255 - maps["confidence"]).max() <= 0.5 / 255 + 1e-6
    low, high = np.quantile(maps["edge"], (0.005, 0.995))
    np.testing.assert_allclose(picture["edge"], np.interp(maps["edge"], (low, high), (0, 255)), atol=0.51)
    sure = maps["layout"] != 255
    np.testing.assert_array_equal(picture["layout"][sure], PALETTE[maps["layout"][sure]])
    assert sure.any() and not sure.all() and not picture["layout"][~sure].any()


def test_a_flag_at_its_default_is_a_flag(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIIA__OPTIM__AMP", "bf16")
    words = ["w.pth", "x.png", "--out", "o"]
    changed = predict.parse_arguments([*words, "--amp", "off", "--scales", "1", "--flip"]).changed
    assert changed == {"amp": "off", "scales": [1.0], "flip": True}
    assert load(weights, device="cpu").autocast_dtype == torch.bfloat16, "of the environment"
    assert load(weights, device="cpu", **changed).autocast_dtype is None
    assert predict.parse_arguments([*words, "--fp16"]).changed == {"amp": "auto"}


@pytest.mark.parametrize("kind", ["edge", "layout"])
def test_a_kind_that_the_method_lacks_is_refused(kind: str, weights: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--write {kind}: the method base has none"):
        run(weights, tmp_path / "out", images, "--write", "overlay", kind)
    assert not (tmp_path / "out").exists()


def test_files_globs_and_lists_keep_what_tells_them_apart(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = images / "cam1" / "a.png", images / "cam2" / "a.png"
    assert list(run(weights, tmp_path / "file", one)) == ["train_ids/a.png"]
    both = ["train_ids/cam1/a.png", "train_ids/cam2/a.png"]
    assert list(run(weights, tmp_path / "files", one, two, one)) == both
    assert list(run(weights, tmp_path / "glob", images / "cam?" / "a.*")) == both
    assert len(run(weights, tmp_path / "all", f"{images}/**/b.*")) == 2
    (tmp_path / "linked").mkdir()
    for name, place in (("cam3", images / "cam1"), ("up", tmp_path / "linked"), ("out", tmp_path / "all")):
        (tmp_path / "linked" / name).symlink_to(place)
    shutil.copy(one, tmp_path / "linked" / "._a.png")
    linked = run(weights, tmp_path / "all", tmp_path / "linked", "--force")
    assert [name for name in linked if "cam3" in name] == ["train_ids/cam3/a.png", "train_ids/cam3/b.png"]
    assert len(linked) == 4, [*linked]
    own = tmp_path / "colour" / "a.png"  # a folder of the user's beside the results
    own.parent.mkdir()
    shutil.copy(one, own)
    (tmp_path / "link").symlink_to(tmp_path)
    for word in (own.parent, tmp_path / "link" / "colour"):
        assert find_files(str(word), out=tmp_path)[0] == [own]
    assert own not in find_files(str(tmp_path), out=tmp_path)[0], "which may be a result"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one}\n\n{two}\n\n"))
    assert list(run(weights, tmp_path / "list", "-")) == both
    with pytest.raises(UserError, match="an input is an empty word; give files"):
        run(weights, tmp_path / "empty", "")
    Image.fromarray(STREETS[0]).save(images / "cam1" / "a.jpg")
    names = ["train_ids/a.jpg.png", "train_ids/a.png.png", "train_ids/b.png"]
    assert list(run(weights, tmp_path / "stems", images / "cam1")) == names


def test_a_broken_file_is_named_and_skipped(
    weights: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "cam1" / "aa.jpg").write_text("broken")
    (images / "drive.mp4").write_text("broken")
    with pytest.raises(SystemExit) as stop:
        run(weights, tmp_path / "out", images)
    assert stop.value.code == 1 and len(written(tmp_path / "out")) == 4
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2 and "aa.jpg: " in errors[0] and "drive.mp4: " in errors[1]
    assert capsys.readouterr().out == f"4 of 6 files: {tmp_path / 'out'}\n"


def test_nothing_is_overwritten_unless_asked_for(weights: Path, images: Path, tmp_path: Path) -> None:
    old = tmp_path / "out" / "train_ids" / "cam2" / "a.png"
    old.parent.mkdir(parents=True)
    old.write_text("precious")
    with pytest.raises(UserError, match=r"train_ids/cam2/a\.png: exists already; .* --force"):
        run(weights, tmp_path / "out", images)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [old]
    assert old.read_text() == "precious"
    assert len(run(weights, tmp_path / "out", images, "--force")) == 4


def test_an_interrupted_call_goes_on(weights: Path, images: Path, tmp_path: Path) -> None:
    whole = run(weights, tmp_path / "out", images, "--write", "train_ids", "overlay")
    files = sorted(path for path in (tmp_path / "out").rglob("*.png"))
    files[0].unlink()
    for path in files[1:]:
        os.utime(path, (0, 0))
    found = run(weights, tmp_path / "out", images, "--write", "train_ids", "overlay", "--resume")
    assert all((found[name] == whole[name]).all() for name in whole) and len(found) == len(whole) == 8
    again = [path for path in files if path.stat().st_mtime]
    assert {path.stem for path in again} == {files[0].stem} and len(again) == 2, "both of the image that is not whole"


@pytest.mark.parametrize("place", [".", "cam1/out", ".."])
def test_results_are_no_inputs_of_a_second_call(place: str, weights: Path, images: Path) -> None:
    out = (images / place).resolve()
    for again in ([], ["--force"]):
        predict.main([str(weights), str(images), "--out", str(out), *again])
        assert len([*images.parent.rglob("*.png")]) == 2 + 4 and len([*(out / "train_ids").rglob("*.png")]) == 4
    predict.main([str(weights), f"{images}/**/*.png", "--out", str(out), "--force"])
    assert len([*images.parent.rglob("*.png")]) == 2 + 4


def test_a_path_means_what_it_means_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here/photos", "there/sub", "there/photos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there/photos/a.png").touch()
    (tmp_path / "here/link").symlink_to(tmp_path / "there/sub")
    monkeypatch.chdir(tmp_path / "here")
    files, roots = find_files("link/../photos", out=tmp_path)
    assert roots == [tmp_path / "there/photos"] and files == [tmp_path / "there/photos/a.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{folder} {images}", "a folder without config.json and model.safetensors is none of weights"),
        ("{images}/notes.txt {images}", "not a readable weight file"),
        ("{weights} {images}/notes.txt", r"notes\.txt: neither an image nor a video by its suffix"),
        ("{weights} {folder}", "no image or video there"),
        ("{weights} {folder}/none.png", r"none\.png: there is no such file or folder"),
        ("{weights} {images} --opacity 1.5", "--opacity must be a number from 0 to 1, got 1.5"),
        ("{weights} {images} --bs_mult_val 0", "--bs_mult_val must be a whole number of at least 1"),
        ("{weights} {images} --out {images}/notes.txt/x", "notes.txt/x.*: the folder cannot be made"),
    ],
)
def test_bad_inputs_are_one_sentence(words: str, message: str, weights: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    places = {"folder": tmp_path / "empty", "images": images, "weights": weights}
    with pytest.raises(UserError, match=message) as error:
        predict.main(["--out", str(tmp_path / "out"), *words.format(**places).split()])
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_weights_of_another_architecture_end_with_exit_code_2(images: Path, tmp_path: Path) -> None:
    save_random(tmp_path / "r18.pth", "--backbone", "resnet18", "--method", "base")
    content = read_weights(tmp_path / "r18.pth")
    content["config"]["NETWORK"]["BACKBONE"] = "resnet34"
    torch.save(content, tmp_path / "r34.pth")
    done = launch("predict.py", [str(tmp_path / "r34.pth"), str(images), "--out", str(tmp_path / "out")], check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "r34.pth: does not fit" in done.stderr
    assert not (tmp_path / "out").exists()


def test_reading_and_writing_overlap_with_the_network(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_read, second_predicted, predicted = threading.Event(), threading.Event(), list[int]()
    read, maps, save = predict.read_photo, Model.maps, predict.Writer.save

    def read_photo(path: str) -> np.ndarray:
        if path.endswith("cam1/b.bmp"):
            second_read.set()
        return read(path)

    def slow_maps(self: Model, batch: list[np.ndarray], names: set[str]) -> Any:
        assert second_read.wait(10), "read while the network has the first image"
        predicted.append(len(batch))
        if len(predicted) == 2:
            second_predicted.set()
        return maps(self, batch, names)

    def slow_save(self: predict.Writer, result: Any) -> None:
        assert second_predicted.wait(10), "the network has the second image while the first is written"
        save(self, result)

    monkeypatch.setattr(predict, "read_photo", read_photo)
    monkeypatch.setattr(Model, "maps", slow_maps)
    monkeypatch.setattr(predict.Writer, "save", slow_save)
    assert len(run(weights, tmp_path / "out", images)) == 4 and predicted == [1] * 4


def test_processes_wait_for_one_with_a_long_film(
    weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, group = list[float](), predict.distributed.process_group

    def process_group(*args: Any, **settings: Any) -> Any:
        told.append(settings["timeout"])
        return group(*args, **settings)

    monkeypatch.setattr(predict.distributed, "process_group", process_group)
    run(weights, tmp_path / "out", images)
    assert told[0] >= 7 * 24 * 3600


def test_two_processes_write_the_files_of_one(weights: Path, images: Path, tmp_path: Path) -> None:
    (images / "cam1" / "0.jpg").write_text("broken")  # of rank 0
    wanted = run_failing(weights, tmp_path / "one", images)
    flags = [str(weights), str(images), "--out", str(tmp_path / "two"), "--write", "train_ids", "overlay"]
    done = launch("predict.py", [*flags, "--device", "cpu"], processes=2, check=False)
    assert done.returncode == 1 and done.stdout == f"4 of 5 files: {tmp_path / 'two'}\n", done.stderr
    found = written(tmp_path / "two")
    assert list(found) == list(wanted) and len(found) == 8
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


def run_failing(weights: Path, out: Path, images: Path) -> dict[str, np.ndarray]:
    with pytest.raises(SystemExit):
        run(weights, out, images, "--write", "train_ids", "overlay")
    return written(out)


def ffmpeg(*words: str | Path) -> None:
    """Run FFmpeg; bare bytes of names are handed on."""
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)], check=True)


def write_video(path: Path, *, frames: int, size: tuple[int, int] = (96, 64)) -> None:
    """Write a video of one colour per frame, redder from frame to frame."""
    how: list[str] = ["-codec:v", "mpeg4", "-pix_fmt", "yuv420p", "-qscale:v", "3"]
    words = [get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"]
    colours = [np.full((*size[::-1], 3), (40 + 10 * number, 90, 200), np.uint8) for number in range(frames)]
    subprocess.run([*words, "-r", "10", "-i", "-", *how, str(path)], input=np.stack(colours).tobytes(), check=True)


def read_video(path: Path) -> tuple[float, np.ndarray]:
    """Return the frames per second and the frames (N, H, W, 3), by another reader than the program's."""
    video, frames = cv2.VideoCapture(str(path)), []
    rate = float(video.get(cv2.CAP_PROP_FPS))
    while (result := video.read())[0]:
        frames.append(result[1][..., ::-1])
    return rate, np.stack(frames).astype(int)


def test_a_video_becomes_a_video(weights: Path, model: Model, tmp_path: Path) -> None:
    write_video(tmp_path / "drive.mp4", frames=12)
    _, source = read_video(tmp_path / "drive.mp4")
    predict.main([str(weights), str(tmp_path / "drive.mp4"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert {*(tmp_path / "out").rglob("*")} == {
        tmp_path / "out" / "overlay",
        tmp_path / "out" / "overlay" / "drive.mp4",
    }
    rate, frames = read_video(tmp_path / "out" / "overlay" / "drive.mp4")
    assert rate == 10 and frames.shape == source.shape
    for frame, image in zip(frames, source, strict=True):
        wanted = 0.5 * image + 0.5 * PALETTE[model.segment(image.astype(np.uint8))]
        assert np.abs(frame - wanted).mean() < 8, "in order, up to the compression; of a wrong matrix 8 to 30"
    content = (tmp_path / "out" / "overlay" / "drive.mp4").read_bytes()
    assert content.index(b"avc1") < content.index(b"mdat"), "H.264, its index in front: a browser shows it as it loads"
    kinds = ["side_by_side", "confidence", "train_ids"]
    arguments = [str(weights), str(tmp_path / "drive.mp4"), "--out", str(tmp_path / "more"), "--device", "cpu"]
    predict.main([*arguments, "--write", *kinds])
    shapes = {path.parent.name: read_video(path)[1].shape for path in (tmp_path / "more").rglob("*.mp4")}
    assert shapes == {"side_by_side": (12, 64, 192, 3), "confidence": (12, 64, 96, 3)}


def test_videos_of_phones_and_of_odd_sizes(weights: Path, tmp_path: Path) -> None:
    """One turned by its metadata, with frames at uneven times and sound, and one of odd sides."""
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "drive.mp4", frames=8)
    ffmpeg("-i", tmp_path / "drive.mp4", "-vf", "setpts=(N+N*N)/10/TB", "-fps_mode", "vfr", tmp_path / "uneven.mp4")
    sound = ("-f", "lavfi", "-i", "sine=duration=3.7")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "uneven.mp4", *sound, "-codec:v", "copy", tmp_path / "in/a.mov")
    write_video(tmp_path / "in" / "b.mkv", frames=3, size=(97, 65))
    arguments = [str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    predict.main([*arguments, "--write", "side_by_side"])
    sizes = {path.name: read_video(path)[1].shape for path in (tmp_path / "out").rglob("*.mp4")}
    assert sizes == {"a.mp4": (8, 96, 128, 3), "b.mp4": (3, 64, 194, 3)}, "upright, every frame once, the sides even"
    assert b"mp4a" in (tmp_path / "in" / "a.mov").read_bytes()
    assert b"mp4a" not in (tmp_path / "out" / "side_by_side" / "a.mp4").read_bytes()


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])  # which name the highest rate
def test_a_film_of_a_varying_rate_keeps_its_length(suffix: str, tmp_path: Path) -> None:
    film, varying = "testsrc=duration=6:rate=30:size=64x48", "select='lt(t,1)+not(mod(n,15))'"
    ffmpeg("-f", "lavfi", "-i", film, "-vf", varying, "-fps_mode", "vfr", tmp_path / f"film{suffix}")
    rate, length, frames = open_video(tmp_path / f"film{suffix}")
    found = len(list(frames))
    assert found == length == 40 and found / rate == pytest.approx(5.5, abs=0.2)


def test_a_video_without_room_is_one_sentence(weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "drive.mp4", frames=12)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # bytes a file
    try:
        with pytest.raises(UserError, match=r"out: no video can be written .*; free space there"):
            run(weights, tmp_path / "out", tmp_path / "drive.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "out").iterdir())


def test_a_video_that_ends_too_early_is_named(weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / "cut.mkv", frames=20)
    content = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit) as stop:
        predict.main([str(weights), str(tmp_path / "cut.mkv"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    frames = len(read_video(tmp_path / "out" / "overlay" / "cut.mp4")[1])
    assert stop.value.code == 1 and 1 < frames < 18
    assert f"cut.mkv: it ends after {frames} of 20 frames" in caplog.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overlay"], "no temporary folder is left"


def test_an_image_too_small_for_the_network_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "isw.pth"
    save_random(weights, "--backbone", "mobilenet_v2", "--method", "isw")
    (tmp_path / "in").mkdir()
    for name, side in (("a", 32), ("b", 4), ("c", 32), ("d", 1)):
        Image.fromarray(STREETS[1][:side, :side]).save(tmp_path / "in" / f"{name}.png")
    write_video(tmp_path / "in" / "e.mp4", frames=2, size=(4, 4))
    for batch in (1, 3):
        out = tmp_path / str(batch)
        with pytest.raises(SystemExit) as end:
            run(weights, out, tmp_path / "in", "--bs_mult_val", str(batch))
        assert end.value.code == 1 and {path.name for path in out.rglob("*.*")} == {"a.png", "c.png"}
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    names = [f"{Path(sentence.partition(': ')[0]).name} {sentence.partition(': ')[2][:10]}" for sentence in told]
    assert names == ["b.png 4x4 pixels", "d.png 1x1 pixels", "e.mp4 4x4 pixels"] * 2
