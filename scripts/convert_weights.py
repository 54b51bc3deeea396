"""`python -m scripts.convert_weights PUBLISHED.pth --arch NAME --out OURS.pth`: published weights to a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import config
from utils import program_parser
from utils.errors import UserError, run_entry_point

FLAGS = (  # as train.py has them
    *("--arch", "--backbone", "--output_stride", "--method", "--wt_layer", "--layout_confidence"),
    *("--mean", "--std", "--image_in"),
)


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.convert_weights",
        "Turn weights that RobustNet or DIIA published into a checkpoint that knows its network.",
        details="valid.py --snapshot evaluates it, train.py --snapshot starts from it.",
    )
    parser.add_argument("file", metavar="PUBLISHED.pth", help="weight file with the names of RobustNet or DIIA")
    parser.add_argument("--out", required=True, metavar="OURS.pth", help="checkpoint to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    for row in (row for row in config.KEYS.values() if row.flag in FLAGS):
        number, name = (row.lengths[1], "N") if row.is_list else (1, row.key.partition(".")[2])
        how: dict[str, Any] = {"nargs": number, "default": [], "metavar": name}
        parser.add_argument(row.flag, help=row.help, **({"action": "store_true"} if row.base is bool else how))
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

from network.weights import build_published
from utils import checkpoint, logs
from utils.files import make_folder


def convert(args: argparse.Namespace) -> str:
    """Write the checkpoint that the flags ask for, or raise `UserError`; return one line about its network."""
    given = {flag: value for flag in FLAGS if (value := getattr(args, flag[2:]))}
    words = [word for flag, values in given.items() for word in (flag, *([] if values is True else values))]
    cfg, out = config.parse(words, program="train"), Path(args.out)
    if out.suffix not in (".pth", ".pt"):  # by others it would be read as another kind of file
        raise UserError(f"--out {out}: a checkpoint ends in .pth; name another file")
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another file or add --overwrite")
    content = checkpoint.read(args.file)
    if checkpoint.is_ours(content):
        raise UserError(f"{args.file}: is a checkpoint of train.py or convert_weights already; use it as it is")
    network = build_published(cfg, content, path=args.file)
    plain, epoch = config.to_dict(cfg), content.get("epoch")
    plain["NETWORK"].update(METHOD=network.method.name, WT_LAYER=list(network.method.codes))
    make_folder(out.parent)
    converted = {
        "kind": checkpoint.CONVERTED,
        "network": network.state_dict(),
        **{part: {} for part in ("criterion", "optimizer", "scheduler", "scaler", "best")},
        "progress": {"epoch": epoch if isinstance(epoch, int) else 0, "step_in_epoch": 0, "step": 0},
        "config": plain,
        "versions": logs.versions(),
        "world_size": 1,
    }
    checkpoint.save(out, converted)
    return network.describe()


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    logs.setup_logging()
    logs.write_line(f"{args.out}: {convert(args)}")


if __name__ == "__main__":
    run_entry_point(main)
