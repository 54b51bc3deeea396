"""`python -m scripts.cache_frames DOMAIN ... --frame_cache DIR`: decode frames before a run, or verify the decoded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from datasets.codec import Encoding
from datasets.domains import Pair, find_pairs
from datasets.frames import FrameCache, gigabytes
from datasets.loaders import choose_workers, frame_cache
from datasets.segmentation import read_pair
from datasets.workers import parallel_map
from scripts.data_options import chosen_domains, data_config, data_parser
from utils.errors import UserError, run_entry_point


def _fill(pair: Pair, *, encoding: Encoding, cache: FrameCache) -> list[str]:
    read_pair(pair, encoding=encoding, cache=cache)
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program; exit code 1 where --verify finds a frame that differs."""
    parser = data_parser(
        "cache_frames",
        "Decode the frames of data sets into a folder that train.py --frame_cache DIR reads. A frame takes 4 bytes per "
        "pixel (a GTAV frame 8 MB, its training split about 100 GB). A broken build goes on where it stopped.",
        domains="data sets to decode",
    )
    text = "folder of decoded frames; or DATASET.FRAME_CACHE"
    parser.add_argument("--frame_cache", "--cache", default="", metavar="DIR", help=text)
    parser.add_argument("--split", default="train", help="split to decode (%(default)s)")
    parser.add_argument("--verify", action="store_true", help="compare what is there with the sources, remove the rest")
    parser.add_argument("--num_workers", default="", metavar="N", help="processes, -1 for a number that fits the cores")
    given = parser.parse_args(argv)
    cfg, wrong = data_config(given, "frame_cache", "num_workers"), []
    cache, workers = frame_cache(cfg), choose_workers(cfg.DATASET.NUM_WORKERS)
    if cache is None:
        raise UserError("no folder for the decoded frames: give --frame_cache DIR")
    pools = [(domain, find_pairs(domain, given.split)) for domain in chosen_domains(cfg, given.names)]
    cache.reserve([(pairs, domain.encoding) for domain, pairs in pools])
    for domain, pairs in pools:
        title, missing = f"{domain.name}/{given.split}", set(cache.missing(pairs, encoding=domain.encoding))
        todo = [pair for pair in pairs if (pair in missing) != given.verify]
        work = partial(cache.verify if given.verify else partial(_fill, cache=cache), encoding=domain.encoding)
        bar = {"title": f"{'verify' if given.verify else 'decode'} {title}", "unit": "frame"}
        clauses = parallel_map(work, todo, workers=workers, **bar)
        found = [clause for part in clauses for clause in part]
        if given.verify:
            text = f"{len(todo)} frames compared, {len(found)} files differed and were removed, {len(missing)} missing"
        else:
            text = f"{len(pairs)} frames, {len(todo)} made now"
        size = gigabytes(cache.size(pairs, encoding=domain.encoding))
        sys.stdout.write(f"{title}: {text}; {size} in {cache.folder}\n")
        wrong += found
    for clause in wrong:
        sys.stdout.write(f"{clause}\n")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
