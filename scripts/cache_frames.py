"""`python -m scripts.cache_frames DOMAIN ... --frame_cache DIR`: decode frames before a run, or verify the decoded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain

from scripts import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = data_parser(
        "cache_frames",
        "Decode the frames of data sets into a folder that train.py --frame_cache DIR reads.",
        details="A frame takes 4 bytes per pixel (a GTAV frame 8 MB, its training split about 100 GB). After an "
        "interruption the same command resumes. Exit code 1: --verify found frames that differ.",
    )
    parser.add_argument(
        "--frame_cache", "--cache", default="", metavar="DIR", help="folder of decoded frames; or DATASET.FRAME_CACHE"
    )
    parser.add_argument("--split", default="train", help="split to decode")
    parser.add_argument(
        "--verify", action="store_true", help="compare what is there with the sources, remove what differs"
    )
    parser.add_argument("--num_workers", default="", metavar="N", help="processes, -1 for a number that fits the cores")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

from datasets.codec import Encoding
from datasets.loaders import choose_workers, frame_cache
from datasets.segmentation import FrameCache, gigabytes, read_pair
from datasets.splits import Pair, find_pairs
from utils.parallel import parallel_map


def _fill(pair: Pair, *, encoding: Encoding, cache: FrameCache) -> list[str]:
    read_pair(pair, encoding=encoding, cache=cache)
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 1 where --verify finds a frame that differs."""
    args = make_parser().parse_args(argv)
    cfg, differing = data_config(args, "frame_cache", "num_workers"), []
    cache, workers = frame_cache(cfg), choose_workers(cfg.DATASET.NUM_WORKERS)
    if cache is None:
        raise UserError("no folder for the decoded frames: give --frame_cache DIR")
    pools = [(domain, find_pairs(domain, args.split)) for domain in chosen_domains(cfg, args.names)]
    if not args.verify:
        cache.reserve([(pairs, domain.encoding) for domain, pairs in pools])
    for domain, pairs in pools:
        name, missing = f"{domain.name}/{args.split}", set(cache.missing(pairs, encoding=domain.encoding))
        todo = [pair for pair in pairs if (pair in missing) != args.verify]
        work = partial(cache.verify if args.verify else partial(_fill, cache=cache), encoding=domain.encoding)
        title = f"{'verify' if args.verify else 'decode'} {name}"
        clauses = list(chain(*parallel_map(work, todo, workers=workers, title=title, unit="frame")))
        text = f"{len(pairs)} frames, {len(todo)} made now"
        if args.verify:
            text = (
                f"{len(todo)} frames compared, {len(clauses)} files differed and were removed, {len(missing)} missing"
            )
        size = gigabytes(cache.size(pairs, encoding=domain.encoding))
        sys.stdout.write(f"{name}: {text}; {size} in {cache.folder}\n")
        differing += clauses
    sys.stdout.writelines(f"{clause}\n" for clause in differing)
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
