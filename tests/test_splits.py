"""A split is opened once per run, by the first process; archives are read where they lie, as if unpacked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.runs import REPOSITORY, launch, train_arguments
from tests.street_data import write_domain

# train.py, with a record of every folder of the data that is listed, every archive and header that is read.
RECORDER = """
import json, os, sys
from pathlib import Path

repository, data, record = sys.argv[1:4]
sys.path.insert(0, repository)
seen = {"listed": [], "headers": []}

def look(event, arguments):
    if event in ("os.listdir", "os.scandir") and str(arguments[0]).startswith(data):
        seen["listed"].append(str(arguments[0]))

sys.addaudithook(look)
import train
from datasets import splits

def image_size(path, original=splits.image_size):
    seen["headers"].append(path)
    return original(path)

splits.image_size = image_size
train.main(sys.argv[4:])
Path(f"{record}.{os.environ['RANK']}").write_text(json.dumps(seen))
"""


def test_every_split_is_listed_once_by_the_first_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("gtav", "camvid"):
        write_domain(data / name, name, train=4, val=2)
    program = tmp_path / "recorder.py"
    program.write_text(RECORDER)
    flags = train_arguments(data / "camvid", tmp_path / "out")
    flags += ["--dataset", "gtav", "camvid", "--val_dataset", "camvid", "gtav"]
    flags += ["--covstat_val_dataset", "camvid", "gtav"]
    flags += ["--method", "isw", "--trials", "2", "--cov_stat_epoch", "0", "--val_interval", "1", "--val_limit", "1"]
    flags += ["--class_uniform_pct", "0.5", "--bs_mult", "1", "--max_iter", "8", "--quick_check"]
    flags += ["--opts", f"DATASET.CAMVID_DIR={data}/camvid", f"DATASET.GTAV_DIR={data}/gtav"]
    launch(str(program), [str(REPOSITORY), str(data), str(tmp_path / "seen"), *flags], processes=2)
    first, second = (json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2))
    assert second == {"listed": [], "headers": []}
    listed = Counter(str(Path(folder).relative_to(data)) for folder in first["listed"])
    assert set(listed.values()) == {1}, listed
    leaves = {f"gtav/{kind}/{split}/folder" for kind in ("images", "labels") for split in ("train", "valid")}
    assert leaves | {"camvid/train", "camvid/trainannot", "camvid/val", "camvid/valannot"} <= set(listed)
    assert len(first["headers"]) == len(set(first["headers"])) == 2 * (4 + 2)
