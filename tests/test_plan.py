from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sampling import EpochPlan, GlobalBatches, Pick, Source, sample_rng, source_epoch
from utils.errors import UserError

NONE = np.zeros((0, 4), dtype=np.int32)


def source(images: int, classes: range = range(19), *, each: int = 3) -> Source:
    """A source whose centroid number n of class c lies in image (c + n) at x = 1000 * c + n, y = 0."""
    rows = [((c + n) % images, c, 1000 * c + n, 0) for c in classes for n in range(each)]
    return Source(images, np.array(rows, dtype=np.int32).reshape(-1, 4))


def classes_of(rows: np.ndarray) -> Counter[int]:
    return Counter((rows[rows[:, 1] >= 0][:, 1] // 1000).tolist())


def test_epoch_arithmetic_of_the_gtav_recipe() -> None:
    rows = source_epoch(source(12388), fraction=0.5, rng=np.random.default_rng(0))
    assert rows.shape == (12388, 3) and (rows[:, 1] < 0).sum() == 6194
    assert classes_of(rows) == dict.fromkeys(range(19), 326)


@pytest.mark.parametrize("images", [12403, 12388, 6580, 2975, 7000, 18000, 367, 200])
def test_every_class_has_as_many_in_all_published_sizes(images: int) -> None:
    rows = source_epoch(source(images), fraction=0.5, rng=np.random.default_rng(0))
    assert classes_of(rows) == dict.fromkeys(range(19), images // 38)


@pytest.mark.parametrize(("images", "aimed"), [(1, 0), (2, 1), (30, 15), (37, 18), (38, 19), (60, 30), (100, 50)])
def test_small_domains_deal_the_remainder_out(images: int, aimed: int) -> None:
    counts, seen = Counter[int](), set[frozenset[int]]()
    for epoch in range(200):
        rows = source_epoch(source(images), fraction=0.5, rng=np.random.default_rng(epoch))
        found = classes_of(rows)
        assert len(rows) == images and found.total() == aimed
        assert {found[index] for index in range(19)} <= {aimed // 19, aimed // 19 + 1}
        counts += found
        seen.add(frozenset(index for index in range(19) if found[index] > aimed // 19))
    assert all(counts[index] / 200 == pytest.approx(aimed / 19, abs=0.15) for index in range(19))
    assert (len(seen) > 1) == (aimed % 19 > 0)  # another choice in every epoch


def test_empty_classes_are_refilled_with_plain_images() -> None:
    rows = source_epoch(source(190, range(5)), fraction=0.2, rng=np.random.default_rng(0))
    assert len(rows) == 190 and classes_of(rows) == dict.fromkeys(range(5), 2)
    assert len(np.unique(rows[rows[:, 1] < 0][:, 0])) == 180  # plain images are drawn without repeats
    rows = source_epoch(source(100, range(5)), fraction=0.5, rng=np.random.default_rng(0))
    assert classes_of(rows).total() == 13  # of 50, 2 of each class and 5/19 of the remainder, 12
    assert len(np.unique(rows[rows[:, 1] < 0][:, 0])) == 87  # plain images are drawn without repeats
    assert (source_epoch(Source(100, NONE), fraction=1.0, rng=np.random.default_rng(0))[:, 1] < 0).all()


def test_a_share_of_nothing_is_every_image_once() -> None:
    rows = source_epoch(source(50), fraction=0.0, rng=np.random.default_rng(0))
    assert sorted(rows[:, 0].tolist()) == list(range(50)) and (rows[:, 1:] == -1).all()


def test_every_centroid_is_taken_before_any_again() -> None:
    rows = source_epoch(source(190, each=3), fraction=0.5, rng=np.random.default_rng(0))  # k = 5 of 3
    counts = Counter(rows[rows[:, 1] >= 0][:, 1].tolist())
    assert set(counts.values()) == {1, 2} and len(counts) == 57


def test_few_images_with_a_large_share() -> None:
    assert len(source_epoch(source(3), fraction=1.0, rng=np.random.default_rng(0))) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_processes_share_the_global_batches(
    sizes: list[int], epoch: int, batch: int, accumulate: int, world: int, fraction: float
) -> None:
    plan = EpochPlan(tuple(source(size) for size in sizes), 304, fraction=fraction)
    images = batch * accumulate * world
    if plan.length < images:
        return
    whole = GlobalBatches(plan, images, epoch=epoch)
    parts = [
        list(GlobalBatches(plan, batch, accumulate, rank, world, epoch=epoch)) for rank in range(world)
    ]  # [rank][micro-batch]
    steps = list(whole)
    assert len(steps) == plan.length // images == len(parts[0]) // accumulate
    order = [tuple(row) for row in plan.order(epoch).tolist()]
    for step, picks in enumerate(steps):
        micro = range(step * accumulate, (step + 1) * accumulate)
        assert [pick for a in micro for part in parts for pick in part[a]] == picks
        for place, pick in enumerate(picks):
            position = step * images + place
            assert (pick.item, *(pick.focus or (-1, -1))) == order[position]
            assert pick.stream == (epoch << 32) + position


def test_more_processes_with_smaller_batches_read_the_same() -> None:
    plan = EpochPlan((source(37),), 1, fraction=0.5)
    one = list(GlobalBatches(plan, 8))
    for world, accumulate in ((2, 1), (4, 1), (2, 2), (1, 4)):
        parts = [list(GlobalBatches(plan, 8 // world // accumulate, accumulate, r, world)) for r in range(world)]
        joined = [
            [pick for a in range(accumulate) for part in parts for pick in part[step * accumulate + a]]
            for step in range(len(one))
        ]
        assert joined == one


@pytest.mark.parametrize("start", [0, 1, 3])
def test_seeking_gives_the_rest_of_the_epoch(start: int) -> None:
    plan = EpochPlan((source(30),), 1, fraction=0.5)
    whole = list(GlobalBatches(plan, 2, accumulate=3, epoch=4))
    rest = GlobalBatches(plan, 2, accumulate=3, epoch=4, start_step=start)
    assert list(rest) == whole[3 * start :] and len(rest) == len(whole) - 3 * start


def test_epochs_and_seeds_differ_and_repeat() -> None:
    plan = EpochPlan((source(60),), 7, fraction=0.5)
    np.testing.assert_array_equal(plan.order(3), EpochPlan((source(60),), 7, fraction=0.5).order(3))
    assert not np.array_equal(plan.order(3), plan.order(4))
    assert not np.array_equal(plan.order(3), EpochPlan((source(60),), 8, fraction=0.5).order(3))


def test_class_uniform_sampling_ends_after_its_epochs() -> None:
    plan = EpochPlan((source(60),), 7, fraction=0.5, uniform_epochs=2)
    assert [(plan.order(epoch)[:, 1] >= 0).any() for epoch in range(4)] == [True, True, False, False]
    assert len(plan.order(0)) == len(plan.order(3))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_several_sources_get_equal_shares_everywhere(fraction: float) -> None:
    sizes, starts = (50, 7, 20), (0, 50, 57, 77)
    plan = EpochPlan(tuple(source(size) for size in sizes), 0, fraction=fraction)
    order = plan.order(0)
    assert plan.length == len(order) == 150
    domain = np.searchsorted(starts, order[:, 0], side="right") - 1
    assert (np.sort(domain.reshape(-1, 3), axis=1) == np.arange(3)).all()
    assert len({tuple(row) for row in domain.reshape(-1, 3).tolist()}) > 1  # their order within a round varies
    for index in range(3):
        counts = Counter(order[domain == index][:, 0].tolist())
        if not fraction:
            assert len(counts) == sizes[index] and max(counts.values()) - min(counts.values()) <= 1
        else:
            assert (order[domain == index][:, 1] >= 0).any()


def test_streams_of_samples_are_independent() -> None:
    draws = {sample_rng(seed, stream).random() for seed in range(5) for stream in range(50)}
    assert len(draws) == 250
    assert sample_rng(1, 2).random() == sample_rng(1, 2).random()


def test_an_epoch_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"epoch of 7 images does not fill one batch of 16 \(--bs_mult 2 x 2 processes"):
        GlobalBatches(EpochPlan((Source(7, NONE),), 0), 2, accumulate=4, world_size=2)


def test_picks_are_plain_numbers() -> None:
    (batch,) = list(GlobalBatches(EpochPlan((source(19),), 0, fraction=1.0), 19))
    assert all(type(pick) is Pick and type(pick.item) is int for pick in batch)
    assert all(pick.focus is not None and type(pick.focus[0]) is int for pick in batch)


def test_epoch_of_the_original_with_its_shortfall_filled(golden: Path) -> None:
    values = np.load(golden / "numpy_level.npz")
    counts, theirs = values["build_epoch_centroid_counts"], values["build_epoch"]
    rows = [(0, c, 1000 * c + n, 0) for c in range(19) for n in range(counts[c])]
    ours = source_epoch(Source(50, np.array(rows)), fraction=0.5, rng=np.random.default_rng(0))
    original = Counter(theirs[theirs[:, 1] >= 0][:, 1].tolist())
    assert original.total() == 18 and classes_of(ours).total() == 18 + 5  # 50 images are few: one more of some classes
    assert not original - classes_of(ours) and max((classes_of(ours) - original).values()) == 1
    assert len(ours) == 50 > len(theirs)
