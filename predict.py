"""Segment own images and videos.

python predict.py WEIGHTS.pth images/ street.jpg drive.mp4 --out predictions --write train_ids overlay
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias, TypeVar

import config
from datasets.predict_files import ALL_KINDS, IMAGES, KINDS, SUBMISSIONS, VIDEOS, file_name, find_files, open_video
from utils import program_parser
from utils.errors import ImageError, UserError, first_few, reason, run_entry_point

FLAGS = (
    *("--device", "--amp", "--bs_mult_val", "--eval_protocol", "--window", "--stride", "--scales", "--flip"),
    *("--average", "--arch", "--backbone", "--output_stride", "--method", "--wt_layer", "--layout_confidence"),
    *("--mean", "--std", "--image_in"),  # of graphs that do not say them, and published weights
)
PATIENCE = 30 * 24 * 3600.0  # s; a process without files is done long before one with a film
ROWS = {row.flag[2:]: row for row in config.KEYS.values() if row.flag in FLAGS}


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "predict",
        "Segment own images and videos.",
        details="Exit code 1: files cannot be read or are too small, each is named. Processes of torchrun share them.",
    )
    parser.prog = "python predict.py"
    parser.add_argument("weights", metavar="WEIGHTS", help="checkpoint of train.py, published weights, or an ONNX file")
    text = "images, videos, folders (with those below), globs in quotes, - for a list of paths on standard input"
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=text)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to, DIR/KIND/NAME.png")
    text = f"what to write: {', '.join(KINDS)}; a video becomes one, without sound, of those that are pictures"
    parser.add_argument("--write", nargs="+", choices=KINDS, metavar="KIND", help=text)
    text = "write instead what a test server takes: cityscapes, acdc or bravo (docs/evaluation.md)"
    parser.add_argument("--submit", choices=SUBMISSIONS, metavar="SERVER", help=text)
    parser.add_argument("--opacity", type=float, default=0.5, metavar="X", help="of the colours in overlays, 0 to 1")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on after an interruption: leave out what is done")
    existing.add_argument("--force", action="store_true", help="replace files that exist")
    for row in ROWS.values():
        name, (least, most) = "N" if row.base is int else row.key.partition(".")[2], row.lengths
        number = None if not row.is_list else most if least == most else "+"
        how: dict[str, Any] = {"type": row.base, "nargs": number, "choices": row.choices or None, "metavar": name}
        how = {"action": "store_true"} if row.base is bool else how | {"default": row.default}
        parser.add_argument(row.flag, help=row.help, **how)
        for flag, value in row.shorthands.items():
            how = {"action": "store_const", "const": value, "help": f"the same as {row.flag} {value}"}
            parser.add_argument(flag, dest=row.flag[2:], **how)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.codec import read_photo
from inference import SAVE_MEMORY, Array, Model, load
from network import Segmentor
from utils import distributed, logs, signals
from utils.files import make_folder, write
from utils.parallel import cores, threaded_map

logger = logging.getLogger("predict")
Source = TypeVar("Source")
Maps: TypeAlias = dict[str, Array]
# What browsers play: H.264 of even sides, in the colours that they expect of a film, with its index in front.
LOOK = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2,scale=out_color_matrix=bt709", "-colorspace", "bt709"]
H264 = {"codec": "libx264", "output_params": [*LOOK, "-preset", "veryfast", "-movflags", "+faststart"]}


class Job(NamedTuple):
    """A file to segment, and the name of what is written, relative and without suffix."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Writer:
    """Where and how results are written; `kinds` maps what to write to the pattern of its file, see `file_name`."""

    out: Path
    kinds: Mapping[str, str]
    opacity: float
    threads: int  # that read, and that write, beside the network

    def of(self, job: Job) -> dict[str, Path]:
        """Return the files of a job by kind; of a video pictures alone, by default the overlay."""
        if job.is_video:
            kinds = [kind for kind in self.kinds if ALL_KINDS[kind].picture] or ["overlay"]
            return {kind: self.out / kind / f"{job.name}.mp4" for kind in kinds}
        return {kind: self.out / file_name(pattern, job.name) for kind, pattern in self.kinds.items()}

    def draw(self, kind: str, image: Array, maps: Maps) -> Image.Image:
        return ALL_KINDS[kind].draw(image, maps[ALL_KINDS[kind].map], self.opacity)

    def save(self, result: tuple[Job, Array, Maps]) -> None:
        """Write all kinds of an image."""
        job, image, maps = result
        for kind, path in self.of(job).items():
            picture = self.draw(kind, image, maps)
            # Level 6 takes four times as long; run lengths (3) make files 13 to 57 % smaller than the default does.
            save = partial(picture.save, format="PNG", compress_level=1, compress_type=3)
            write(path, save, what="the picture")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    device = distributed.choose_device(args.device or ROWS["device"].default, -1)
    with signals.handled(), distributed.process_group(device, save_memory=SAVE_MEMORY, timeout=PATIENCE):
        logs.setup_logging()
        threads = max(min(cores() // distributed.world_size(), 8), 1)
        kinds = SUBMISSIONS[args.submit] if args.submit else {kind: f"{kind}/{{path}}.png" for kind in args.write}
        writer = Writer(Path(args.out), kinds, args.opacity, threads)
        jobs = distributed.from_main(lambda: find_jobs(args.inputs, writer, resume=args.resume, force=args.force))
        if args.submit and (videos := [str(job.path) for job in jobs if job.is_video]):
            raise UserError(f"--submit {args.submit}: takes images, no videos as {first_few(videos)}; leave them out")
        model = load(args.weights, **args.changed | {"device": device})
        logger.info("built %s", model.network.describe())
        wanted = {ALL_KINDS[kind].map for job in jobs for kind in writer.of(job)}
        if missing := sorted(wanted - {*model.map_names}):
            network, flag = model.network, f"--submit {args.submit} needs" if args.submit else "--write"
            what = f"the method {network.method.name}" if isinstance(network, Segmentor) else args.weights
            raise UserError(f"{flag} {' '.join(missing)}: {what} has none; leave it out")
        predict = predictor(model, names=wanted)
        share = slice(distributed.rank(), None, distributed.world_size())
        failed = segment_images([job for job in jobs if not job.is_video][share], predict, writer)
        for job in [job for job in jobs if job.is_video][share]:
            try:
                failed += not segment_video(job, predict, writer)
            except ImageError as error:
                logger.error("%s: %s", job.path, error)
                failed += 1
            except OSError as error:
                raise UserError(f"{args.out}: no video can be written ({reason(error)}); free space there") from error
        failed = int(distributed.all_reduce_sum(torch.tensor(failed, device=device)))
        if distributed.is_main():
            logs.write_line(f"{len(jobs) - failed} of {len(jobs)} files: {writer.out}")
    if failed:
        sys.exit(1)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, those of valid.py as it reads them, or raise `UserError`."""
    args = make_parser().parse_args(argv, argparse.Namespace(**dict.fromkeys(ROWS)))  # None where not given
    args.changed = {name: value for name in ROWS if (value := getattr(args, name)) is not None}
    if args.submit and args.write:
        raise UserError(f"--submit {args.submit} says what is written, and so does --write; give one of them")
    args.write = args.write or ["train_ids"]
    if not 0 <= args.opacity <= 1:
        raise UserError(f"--opacity must be a number from 0 to 1, got {args.opacity:g}")
    return args


def find_jobs(inputs: Sequence[str], writer: Writer, *, resume: bool, force: bool) -> list[Job]:
    """Return what is to be segmented (`resume`: and is not yet), named by paths below the folder that inputs share.

    Raises:
        UserError: there are none, an input is none, or results exist and are not to be replaced.
    """
    files, roots = dict[Path, None](), list[Path]()
    for word in inputs:
        for part in filter(None, sys.stdin.read().splitlines()) if word == "-" else [word]:
            found, root = find_files(part, out=writer.out)
            files |= dict.fromkeys(found)
            roots += root
    if not files:
        raise UserError(f"{' '.join(inputs)}: no image or video there ({' '.join(IMAGES + VIDEOS)})")
    shared = os.path.commonpath(roots)
    names = {path: Path(os.path.relpath(path, shared)) for path in files}
    stems, whole = Counter(name.with_suffix("") for name in names.values()), {*names.values()}
    jobs = []
    for path, name in names.items():
        stem = name.with_suffix("")
        unique = stems[stem] == 1 and stem not in whole  # else a.jpg and a.png become a.jpg.png and a.png.png
        jobs.append(Job(path, str(stem if unique else name)))
    owners = Counter(path for job in jobs for path in writer.of(job).values())
    if same := [str(path) for path, number in owners.items() if number > 1]:
        raise UserError(f"{first_few(same)}: several images would have this name; segment them apart")
    existing = {path for path in owners if path.exists()}
    if resume:
        return [job for job in jobs if not existing.issuperset(writer.of(job).values())]
    if existing and not force:
        first = first_few(sorted(map(str, existing)), count=1)
        raise UserError(f"{first}: exists already; take --resume to go on, --force to replace, or another --out")
    return jobs


def predictor(model: Model, *, names: set[str]) -> Callable[..., Any]:
    """Return what yields every image (H, W, 3) with what it is of and what the model says of it or why not.

    On a CPU two batches are computed side by side, each with half of torch's threads from now on.
    """
    batches = 2 if model.device.type == "cpu" and torch.get_num_threads() > 1 else 1
    torch.set_num_threads(torch.get_num_threads() // batches)

    def maps(group: Sequence[tuple[Source, Array]]) -> Sequence[Maps | ImageError]:
        try:
            return model.maps([image for _, image in group], names)
        except ImageError as error:
            return [error] if len(group) == 1 else [maps([pair])[0] for pair in group]  # which one it is

    def predict(images: Iterable[tuple[Source, Array]]) -> Iterator[tuple[Source, Array, Maps | ImageError]]:
        images = iter(images)
        groups = iter(lambda: list(islice(images, model.batch_size)), [])
        for group, results in threaded_map(lambda group: (group, maps(group)), groups, threads=batches):
            for (source, image), found in zip(group, results, strict=True):
                yield source, image, found

    return predict


def segment_images(jobs: Sequence[Job], predict: Callable[..., Any], writer: Writer) -> int:
    """Write the results of images and return how many could not be read or segmented, each of which is named.

    Threads read images ahead of the network and write the results behind it.
    """
    written = 0
    bar = tqdm(total=len(jobs), unit="image", disable=None if distributed.is_main() and jobs else True)

    def readable() -> Iterator[tuple[Job, Array]]:
        for job, image in threaded_map(_read, jobs, threads=writer.threads):
            if isinstance(image, UserError):
                logger.error("%s", image)
                bar.update()
            else:
                yield job, image

    def segmented() -> Iterator[tuple[Job, Array, Maps]]:
        for job, image, maps in predict(readable()):
            if isinstance(maps, ImageError):
                logger.error("%s: %s", job.path, maps)
                bar.update()
            else:
                yield job, image, maps

    with bar:
        for _ in threaded_map(writer.save, segmented(), threads=writer.threads):
            written += 1
            bar.update()
    return len(jobs) - written


def _read(job: Job) -> tuple[Job, Array | UserError]:
    try:
        return job, read_photo(str(job.path))
    except UserError as error:
        return job, error


def segment_video(job: Job, predict: Callable[..., Any], writer: Writer) -> bool:
    """Write a video of every kind, H.264 without sound, and return whether the whole file could be read.

    One that ends too early is named; what there is becomes a video.

    Raises:
        ImageError: it cannot be read, or the network refuses the size of its frames.
        OSError: the result cannot be written.
    """
    from imageio.v2 import get_reader, get_writer

    rate, length, images = open_video(job.path)
    kinds, done = writer.of(job), 0
    make_folder(writer.out)
    bar = tqdm(desc=job.name, total=length or None, unit="frame", disable=None if distributed.is_main() else True)

    def draw(result: tuple[int, Array, Maps | ImageError]) -> dict[str, Array]:
        _, image, maps = result
        if isinstance(maps, ImageError):
            raise maps
        return {kind: np.asarray(writer.draw(kind, image, maps).convert("RGB")) for kind in kinds}

    def encode(pictures: dict[str, Array]) -> None:
        for kind, picture in pictures.items():
            encoders[kind].append_data(picture)

    with TemporaryDirectory(dir=writer.out, prefix=".", suffix=".tmp") as folder, bar, ExitStack() as opened:
        files = {kind: f"{folder}/{kind}.mp4" for kind in kinds}
        encoder = partial(get_writer, format="FFMPEG", fps=rate, macro_block_size=1, ffmpeg_log_level="quiet", **H264)
        encoders = {kind: opened.enter_context(closing(encoder(file))) for kind, file in files.items()}
        ahead = threaded_map(lambda _: next(images, None), repeat(None), threads=1)
        frames = enumerate(takewhile(lambda image: image is not None, ahead))
        for _ in threaded_map(encode, threaded_map(draw, predict(frames), threads=writer.threads), threads=1):
            bar.update()
            done += 1
        opened.close()  # the last frames are written
        for kind, file in files.items() if done else ():
            if get_reader(file, "FFMPEG").count_frames() != done:
                raise OSError("not all frames are there")
            write(kinds[kind], partial(os.replace, file), what="the video")
    if not (whole := done > 0.9 * length):  # what the file says is a guess
        logger.error("%s: it ends after %d of %d frames; it is damaged, or its sound is longer", job.path, done, length)
    return whole


if __name__ == "__main__":
    run_entry_point(main)
