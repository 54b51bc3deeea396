from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.domains import load_domains
from datasets.loaders import (
    DeviceBatches,
    TrainingBatch,
    TrainingLoader,
    build_evaluation_loader,
    build_statistics_loader,
    build_training_loader,
    choose_workers,
)
from datasets.segmentation import StatisticsSample
from datasets.splits import Split, Splits
from tests.street_data import ROOTS, TRAINABLE, blocks, make_cfg, paint, save, write_domain, write_pair
from transforms.appearance import AppearanceParams
from utils.errors import UserError, one_line


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small copy of every built-in domain."""
    root = tmp_path_factory.mktemp("streets")
    for name in ROOTS:
        write_domain(root / name, name, train=6, val=5)
    return root


def config(streets: Path, folder: Path, **values: Any) -> Any:
    return make_cfg(folder, **{key: str(streets / name) for name, key in ROOTS.items()}, **values)


def train_on(cfg: Any, *, rank: int = 0, world_size: int = 1) -> TrainingLoader:
    return build_training_loader(cfg, Splits(load_domains(cfg)), jitter="diia", rank=rank, world_size=world_size)


def opened(cfg: Any, name: str, split: str = "val", **options: bool) -> Split:
    return Splits(load_domains(cfg)).open(name, split, **options)


def num_images(loader: TrainingLoader) -> int:
    return sum(source.num_images for source in loader.batches.plan.sources)


def same(first: TrainingBatch, second: TrainingBatch) -> bool:
    tensors = zip((*first[:2], *first.params), (*second[:2], *second.params), strict=True)
    return first.names == second.names and all(torch.equal(a, b) for a, b in tensors)  # type: ignore[arg-type]


def join(parts: list[TrainingBatch]) -> TrainingBatch:
    images, labels = (torch.cat(tensors) for tensors in zip(*(part[:2] for part in parts), strict=True))
    params = AppearanceParams(*(torch.cat(values) for values in zip(*(part.params for part in parts), strict=True)))
    return TrainingBatch(images, labels, params, [name for part in parts for name in part.names])


def test_classes_that_no_label_holds_are_named(tmp_path: Path) -> None:
    for number in range(2):
        write_pair(tmp_path, "gtav", "train", number, blocks(number, (64, 64), classes=[*range(16), 18]))
    for share, words in ((0.5, "; no label holds train, motorcycle; "), (0.0, "")):
        cfg = make_cfg(tmp_path, TRAIN=["gtav"], GTAV_DIR=str(tmp_path), BATCH_SIZE=1, CLASS_UNIFORM_PCT=share)
        text = train_on(cfg).text
        assert words in text if words else "no label" not in text


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch, step", [(0, 0), (0, 1), (1, 0)])
def test_an_early_start_changes_no_batch(streets: Path, tmp_path: Path, workers: int, epoch: int, step: int) -> None:
    cfg = config(streets, tmp_path, TRAIN=["gtav"], CLASS_UNIFORM_PCT=0.5, NUM_WORKERS=workers)
    expected, loader = list(train_on(cfg).epoch(epoch, start_step=step)), train_on(cfg)
    loader.start()
    for _ in range(2):
        batches = list(loader.epoch(epoch, start_step=step))
        assert len(batches) == len(expected) and all(map(same, batches, expected))


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_training_on_every_domain(streets: Path, tmp_path: Path, name: str, share: float) -> None:
    loader = train_on(config(streets, tmp_path, TRAIN=[name], CLASS_UNIFORM_PCT=share))
    assert (loader.steps_per_epoch, num_images(loader)) == (3, 6) and name in loader.text
    aimed = sum(pick.focus is not None for batch in loader.batches for pick in batch)
    words = f"share 0.5, {aimed} of 6 samples of the first epoch aimed at a class" if share else "plain sampling"
    assert words in loader.text and (aimed > 0) == (share > 0)
    batches = list(loader.epoch(0))
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (2, 3, 32, 32) and batch.images.dtype == torch.uint8
        assert batch.labels.shape == (2, 32, 32) and batch.labels.dtype == torch.uint8
        assert [len(values) for values in batch.params] == [2] * 6 and len(batch.names) == 2
        assert set(batch.labels.unique().tolist()) <= {*range(19), 255}


def test_the_crop_holds_the_class_that_was_drawn(tmp_path: Path) -> None:
    write_domain(tmp_path / "camvid", "camvid", train=19)
    values = {"CLASS_UNIFORM_PCT": 1.0, "BATCH_SIZE": 1, "SCALE_MIN": 1.0}
    loader = train_on(make_cfg(tmp_path, CAMVID_DIR=str(tmp_path / "camvid"), **values))
    (source,) = loader.batches.plan.sources
    classes = {(image, x, y): index for image, index, x, y in source.centroids.tolist()}
    rows, batches = loader.batches.plan.order(0).tolist(), list(loader.epoch(0))
    drawn = [(classes[tuple(row)], batch) for row, batch in zip(rows, batches, strict=True) if row[1] >= 0]
    assert len(drawn) == 11 and all((batch.labels == index).any() for index, batch in drawn)


def test_one_two_and_three_processes_read_the_same(streets: Path, tmp_path: Path) -> None:
    values = {"CLASS_UNIFORM_PCT": 0.5, "TRAIN": ["camvid", "gtav"]}
    whole = list(train_on(config(streets, tmp_path, BATCH_SIZE=6, **values)).epoch(1))
    assert len(whole) == 2
    for world, batch, accumulate in ((2, 3, 1), (3, 2, 1), (3, 1, 2)):
        parts = [
            list(
                train_on(
                    config(streets, tmp_path, BATCH_SIZE=batch, ACCUMULATE=accumulate, **values),
                    rank=rank,
                    world_size=world,
                ).epoch(1)
            )
            for rank in range(world)
        ]
        for step, expected in enumerate(whole):
            joined = [parts[rank][step * accumulate + a] for a in range(accumulate) for rank in range(world)]
            assert same(join(joined), expected)


def test_workers_change_nothing_and_stay(streets: Path, tmp_path: Path) -> None:
    alone = train_on(config(streets, tmp_path, CLASS_UNIFORM_PCT=0.5))
    helped = train_on(config(streets, tmp_path, CLASS_UNIFORM_PCT=0.5, NUM_WORKERS=2))
    next(iter(helped.epoch(7)))  # an epoch that is left early
    processes = {child.pid for child in multiprocessing.active_children()}
    for epoch in range(2):
        pairs = list(zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))
        assert len(pairs) == 3 and all(same(*pair) for pair in pairs)
        assert {child.pid for child in multiprocessing.active_children()} == processes


def test_seeking_into_an_epoch(streets: Path, tmp_path: Path) -> None:
    loader = train_on(config(streets, tmp_path, BATCH_SIZE=1, ACCUMULATE=2))
    whole, rest = list(loader.epoch(3)), list(loader.epoch(3, start_step=1))
    assert len(rest) == 4 and all(same(*pair) for pair in zip(rest, whole[2:], strict=True))
    assert list(loader.epoch(3, start_step=3)) == []


def test_reading_touches_no_global_random_state(streets: Path, tmp_path: Path) -> None:
    for workers in (0, 1):
        loader = train_on(config(streets, tmp_path, NUM_WORKERS=workers, CLASS_UNIFORM_PCT=0.5))
        torch.manual_seed(0)
        before, before_numpy = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
        first = list(loader.epoch(0))
        assert torch.equal(before, torch.get_rng_state())
        assert before_numpy == repr(np.random.get_state())  # noqa: NPY002
        torch.manual_seed(1)
        assert all(same(*pair) for pair in zip(first, loader.epoch(0), strict=True))


def test_several_sources_pooled_or_in_equal_shares(streets: Path, tmp_path: Path) -> None:
    write_domain(tmp_path / "more", "bdd100k", train=12)
    values = {"TRAIN": ["gtav", "bdd100k"], "BATCH_SIZE": 4}
    cfg = config(streets, tmp_path, **values)
    cfg.DATASET.BDD_DIR = str(tmp_path / "more")
    loader = train_on(cfg)
    assert num_images(loader) == 18 and loader.steps_per_epoch == 6 and "equal shares" in loader.text
    for batch in loader.epoch(0):
        assert sum(name.endswith(".jpg") for name in batch.names) == 2
    cfg.DATASET.IMAGE_UNIFORM_SAMPLING, cfg.DATASET.CLASS_UNIFORM_PCT = True, 0.0
    pooled = train_on(cfg)
    names = [name for batch in pooled.epoch(0) for name in batch.names]
    assert pooled.steps_per_epoch == 4 and len(set(names)) == len(names) == 16 and "pooled" in pooled.text


def test_pooled_centroids_point_at_their_images(streets: Path, tmp_path: Path) -> None:
    cfg = config(
        streets, tmp_path, TRAIN=["camvid", "gtav"], IMAGE_UNIFORM_SAMPLING=True, CLASS_UNIFORM_PCT=0.5, BATCH_SIZE=1
    )
    (source,) = train_on(cfg).batches.plan.sources
    assert source.num_images == 12 and set(source.centroids[:, 0].tolist()) == set(range(12))


def test_city_mode(streets: Path, tmp_path: Path) -> None:
    assert num_images(train_on(config(streets, tmp_path, TRAIN=["cityscapes"], CITY_MODE="trainval"))) == 11
    assert num_images(train_on(config(streets, tmp_path, TRAIN=["gtav"], CITY_MODE="trainval"))) == 6


def test_data_sets_pickle_for_spawned_workers(streets: Path, tmp_path: Path) -> None:
    loader = train_on(config(streets, tmp_path, CLASS_UNIFORM_PCT=0.5))
    original: Any = loader.loader.dataset
    copy = pickle.loads(pickle.dumps(original))
    (pick, *_), *_ = list(loader.batches)
    assert torch.equal(copy[pick].image, original[pick].image)
    assert pickle.loads(pickle.dumps(loader.loader.collate_fn)) is loader.loader.collate_fn


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"TRAIN": ["gtaf"]}, "unknown data set 'gtaf'.*did you mean 'gtav'"),
        ({"TRAIN": ["gtav", "gtav"]}, "--dataset: name one or several source data sets, each once"),
        ({"BATCH_SIZE": 7}, "an epoch of 6 images does not fill one batch of 7"),
    ],
)
def test_mistakes_are_one_sentence(streets: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_on(config(streets, tmp_path, **values))


@pytest.mark.parametrize("workers", [0, 1])
def test_faulty_files_are_named_from_workers_too(tmp_path: Path, workers: int) -> None:
    write_domain(tmp_path / "camvid", "camvid")
    cfg = make_cfg(tmp_path, CAMVID_DIR=str(tmp_path / "camvid"), NUM_WORKERS=workers, BATCH_SIZE=4)
    image = save(tmp_path / "camvid/train/00002.png", paint(blocks(0, (20, 30))))
    loader = train_on(cfg)
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert one_line(caught.value).startswith(f"{image}: the image is 30x20, but its label ")
    if not workers:
        image.write_bytes(b"nothing")
        with pytest.raises(UserError, match=f"{image}: this file cannot be decoded"):
            list(loader.epoch(0))


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (choose_workers(-1), choose_workers(0), choose_workers(5)) == (12, 0, 5)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(-1) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert choose_workers(-1) == 1


# ---------------------------------------------------------------------------------- evaluation and statistics


@pytest.mark.parametrize("name", list(ROOTS))
def test_evaluation_gives_whole_images(streets: Path, tmp_path: Path, name: str) -> None:
    cfg = config(streets, tmp_path)
    loader = build_evaluation_loader(cfg, opened(cfg, name), rank=0, world_size=1)
    samples = list(loader)
    assert (
        len(loader.split.pairs) == len(samples) == (6 if name == "kitti" else 5)
        and loader.protocol == "native size, every pixel"
    )
    for sample in samples:
        assert sample.image.shape == (3, *sample.label.shape)
        assert sample.image.dtype == sample.label.dtype == torch.uint8
        if name not in ("bdd100k", "mapillary"):  # stored without loss
            np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), paint(sample.label.numpy()))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_of_processes_make_the_whole_list(streets: Path, tmp_path: Path, world_size: int) -> None:
    cfg = config(streets, tmp_path)
    gtav = opened(cfg, "gtav")
    shares = [build_evaluation_loader(cfg, gtav, rank=rank, world_size=world_size) for rank in range(world_size)]
    names = [sample.name for share in shares for sample in share]
    assert sorted(names) == [pair.name for pair in gtav.pairs]
    assert {(len(share.split.pairs), share.split.list_hash) for share in shares} == {(5, gtav.list_hash)}


def test_a_limit_spreads_over_the_list(streets: Path, tmp_path: Path) -> None:
    cfg = config(streets, tmp_path)
    loader = build_evaluation_loader(cfg, opened(cfg, "camvid"), rank=0, world_size=1, limit=2)
    assert [sample.name for sample in loader] == ["val/00000.png", "val/00002.png"] and len(loader.split.pairs) == 2
    whole = build_evaluation_loader(cfg, opened(cfg, "camvid"), rank=0, world_size=1, limit=99)
    assert len(whole.split.pairs) == 5 and whole.split.list_hash != loader.split.list_hash


def test_the_robustnet_protocol_concerns_mapillary_only(streets: Path, tmp_path: Path) -> None:
    cfg = config(streets, tmp_path, PROTOCOL="robustnet")
    loader = build_evaluation_loader(cfg, opened(cfg, "mapillary"), rank=0, world_size=1, limit=1)
    (sample,) = list(loader)
    assert sample.image.shape == (3, 1536, 1536) and "1536" in loader.protocol
    other = build_evaluation_loader(cfg, opened(cfg, "bdd100k"), rank=0, world_size=1, limit=1)
    assert other.protocol == "native size, every pixel"


def test_statistics_take_whole_images_in_the_order_of_the_trial(streets: Path, tmp_path: Path) -> None:
    cfg = config(streets, tmp_path, STAT_IMAGES=4)
    gtav = opened(cfg, "gtav", "train", need_labels=False)

    def read(trial: int, rank: int = 0, world_size: int = 1) -> list[StatisticsSample]:
        return list(build_statistics_loader(cfg, gtav, trial=trial, rank=rank, world_size=world_size))

    first = read(0)
    assert len(first) == 4 and all(image.shape == (3, 66, 120) for image, _ in first)
    assert all(params.jitter and params.sigma >= 0.15 for _, params in first)
    assert not torch.equal(first[0].params.factors, read(1)[0].params.factors)
    for world_size in (2, 3):
        shares = [read(0, rank, world_size) for rank in range(world_size)]
        for position, (image, params) in enumerate(first):
            other = shares[position % world_size][position // world_size]
            assert torch.equal(other.image, image) and all(map(torch.equal, other.params, params))


def test_statistics_need_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "images/train/a.jpg", paint(blocks(0)))
    cfg = make_cfg(tmp_path, BDD_DIR=str(tmp_path))
    split = opened(cfg, "bdd100k", "train", need_labels=False)
    assert len(list(build_statistics_loader(cfg, split, trial=0, rank=0, world_size=1))) == 1


# ---------------------------------------------------------------------------------- real frames


def test_real_camvid(test_data: Path, tmp_path: Path) -> None:
    values = {"CLASS_UNIFORM_PCT": 0.5, "CLASS_UNIFORM_TILE": 1024, "CROP_SIZE": 256, "BATCH_SIZE": 4, "NUM_WORKERS": 1}
    cfg = make_cfg(tmp_path, CAMVID_DIR=str(test_data / "data/camvid"), **values)
    loader = train_on(cfg)
    assert loader.steps_per_epoch == 101 and num_images(loader) == 406
    order = loader.batches.plan.order(0)
    assert (order[:, 1] >= 0).sum() == 11 * int(406 * 0.5 / 19)
    batch = next(iter(loader.epoch(0, start_step=99)))
    assert batch.images.shape == (4, 3, 256, 256) and batch.labels.unique().numel() > 5
    evaluation = build_evaluation_loader(cfg, opened(cfg, "camvid", "test"), rank=0, world_size=1, limit=3)
    assert [sample.label.shape for sample in evaluation] == [(360, 480)] * 3


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("frames", ["", "frames"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_workers_ranks_and_the_cache_change_nothing(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, frames: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"TRAIN": ["gtav", "synthia"], "CLASS_UNIFORM_PCT": 0.5}
    plain = list(train_on(config(streets, tmp_path, **values)).epoch(0))
    values |= {"FRAME_CACHE": frames, "NUM_WORKERS": workers}
    ranks = [train_on(config(streets, tmp_path, BATCH_SIZE=1, **values), rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(2):  # filled, then read
        parts = [list(rank.epoch(0)) for rank in ranks]
        for first, second, expected in zip(*parts, plain, strict=True):
            assert same(join([first, second]), expected)


def test_statistics_from_the_cache_are_the_same(streets: Path, tmp_path: Path) -> None:
    statistics = [
        list(build_statistics_loader(cfg, opened(cfg, "gtav", "train"), trial=0, rank=0, world_size=1))
        for cfg in (config(streets, tmp_path), config(streets, tmp_path, FRAME_CACHE=str(tmp_path / "frames")))
    ]
    assert all(torch.equal(a.image, b.image) for a, b in zip(*statistics, strict=True))


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_may_start_in_any_way(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    alone = list(train_on(config(streets, tmp_path, CLASS_UNIFORM_PCT=0.5)).epoch(0))
    cfg = config(streets, tmp_path, CLASS_UNIFORM_PCT=0.5, NUM_WORKERS=1, FRAME_CACHE=str(tmp_path / "frames"))
    loader = train_on(cfg)
    loader.loader.multiprocessing_context = start
    assert all(same(*pair) for pair in zip(alone, loader.epoch(0), strict=True))


def test_coarse_frames_are_drawn_for_rare_classes_only(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    write_domain(root, "cityscapes", train=19)
    stem = "train_extra/bochum/bochum_{:06d}_000019_"
    for number in range(3):
        label = np.full((64, 128), 0, np.uint8)
        label[20:40, 20:60] = 16  # a train
        save(root / f"leftImg8bit_trainextra/leftImg8bit/{stem.format(number)}leftImg8bit.png", paint(label))
        raw = np.where(label == 16, 31, 7).astype(np.uint8)
        save(root / f"gtCoarse/gtCoarse/{stem.format(number)}gtCoarse_labelIds.png", raw)
    values = {
        "CITYSCAPES_DIR": str(root),
        "TRAIN": ["camvid", "cityscapes"],
        "CLASS_UNIFORM_PCT": 1.0,
        "COARSE_BOOST_CLASSES": [16],
        "BATCH_SIZE": 1,
        "SCALE_MIN": 1.0,
        "CAMVID_DIR": str(tmp_path / "camvid"),
    }
    write_domain(tmp_path / "camvid", "camvid", train=5)
    loader = train_on(make_cfg(tmp_path, **values))
    assert "3 coarse frames" in loader.text and num_images(loader) == 24
    coarse = [batch for epoch in range(24) for batch in loader.epoch(epoch) if "train_extra" in batch.names[0]]
    assert coarse and all((batch.labels == 16).any() for batch in coarse)
    pooled = train_on(make_cfg(tmp_path, IMAGE_UNIFORM_SAMPLING=True, **values))
    coarse = [batch for epoch in range(24) for batch in pooled.epoch(epoch) if "train_extra" in batch.names[0]]
    assert coarse and all((batch.labels == 16).any() for batch in coarse)
    with pytest.raises(UserError, match="--coarse_boost_classes needs --dataset cityscapes"):
        train_on(make_cfg(tmp_path, **{**values, "TRAIN": ["camvid"]}))


def test_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("datasets.loaders.time.perf_counter", lambda: clock[0])

    def slow() -> Iterator[TrainingBatch]:
        for _ in range(3):
            clock[0] += 3.0
            yield TrainingBatch(torch.zeros(1), torch.zeros(1), AppearanceParams(*[torch.zeros(1)] * 6), [])

    to_device = DeviceBatches(torch.device("cpu"))
    for _ in to_device(slow()):
        clock[0] += 1.0
        assert to_device.wait_share() == pytest.approx(0.75)
    clock[0] += 100.0  # scoring, say
    to_device.restart()
    assert to_device.wait_share() == 0
    for _ in to_device(slow()):
        clock[0] += 9.0
        assert to_device.wait_share() == pytest.approx(0.25)
        break


def test_advice_names_what_is_left_to_do(streets: Path, tmp_path: Path) -> None:
    few = train_on(config(streets, tmp_path))
    assert "raise --num_workers above 0" in few.advice() and "--frame_cache DIR" in few.advice()
    cached = train_on(config(streets, tmp_path, FRAME_CACHE=str(tmp_path / "frames"), NUM_WORKERS=choose_workers(-1)))
    assert "--num_workers" not in cached.advice() and "--frame_cache" not in cached.advice()
