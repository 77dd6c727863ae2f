"""Minibatches by key and iteration alone, wherever the data lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stanley_fast as sf
from stanley_fast import image_runs
from stanley_fast.data import Images
from stanley_fast.feed import BLOCKS_PER_ITERATION, Feed
from stanley_fast.starts import NoiseStart
from stanley_fast.trainer import Trainer

POINTS = torch.arange(100.0).view(50, 2)


class Noting:
    """Data that notes the keys it is asked with."""

    def __init__(self) -> None:
        self.keys: list[list[int]] = []

    def __call__(self, n: int, key: Tensor) -> Tensor:
        self.keys.append(key.tolist())
        return sf.normal((n, 2), key)


def test_draws_by_the_key_as_it_is_moved_on() -> None:
    key = sf.key(5)
    mine = Feed(POINTS, key, 0.0)
    first, again = mine.draw(20, 0), mine.draw(20, 0)
    assert torch.equal(first, again)
    key[1] += BLOCKS_PER_ITERATION
    assert not torch.equal(mine.draw(20, 1), first)


def test_data_on_the_host_has_a_key_of_its_own() -> None:
    """Where the device's will be at that iteration, however far ahead the host is."""
    data, start = Noting(), torch.tensor([7, 100 + 3 * BLOCKS_PER_ITERATION])
    mine = Feed(data, start.clone(), 0.0)
    mine.by_host = True
    mine.start_at(start, 3)
    for iteration in (3, 4, 9, 3):
        mine.draw(5, iteration)
        assert data.keys[-1] == [7, 100 + iteration * BLOCKS_PER_ITERATION]
    assert start.tolist() == [7, 100 + 3 * BLOCKS_PER_ITERATION]


def test_a_tensor_on_the_host_is_drawn_there() -> None:
    """With the numbers that its device's key would give."""
    key = sf.key(5)
    near, far = Feed(POINTS, key, 0.0), Feed(POINTS, key, 0.0)
    far.by_host = True
    assert torch.equal(far.draw(20, 0), near.draw(20, 0))
    key[1] += 2 * BLOCKS_PER_ITERATION
    assert torch.equal(far.draw(20, 2), near.draw(20, 2))


def test_a_trainer_says_where_it_is_after_a_resume() -> None:
    data = Noting()
    settings = {"start": NoiseStart(2.0), "optimizer": torch.optim.Adam, "steps": 1}
    settings |= {"batch_size": 4, "progress": False, "key": sf.key(5)}
    run = Trainer(sf.MLPEnergy((2, 8, 1)), data, sf.Stanley(0.1), **settings)  # type: ignore[arg-type]
    run.fit(3)
    again = Trainer(sf.MLPEnergy((2, 8, 1)), data, sf.Stanley(0.1), **settings)  # type: ignore[arg-type]
    again.load_state_dict(run.state_dict())
    again.feed.by_host = run.feed.by_host = True
    assert torch.equal(again.feed.draw(4, 3), run.feed.draw(4, 3))
    assert data.keys[-1] == data.keys[-2] == run.keys[1].tolist()


class OnAGpu(Tensor):
    """A key that says it is on a GPU."""

    is_cuda, device = True, torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("where", "by_host"),
    [("cpu", True), (torch.device("cpu"), True), ("cuda", False), (torch.device("cuda:0"), False)],
)
def test_whose_key(monkeypatch: pytest.MonkeyPatch, where: object, by_host: bool) -> None:
    monkeypatch.setattr(Feed, "start_at", lambda self, key, iteration: None)
    data = Noting()
    data.device = where  # type: ignore[attr-defined]
    assert Feed(data, sf.key(0).as_subclass(OnAGpu), 0.0).by_host == by_host
    assert not Feed(data, sf.key(0), 0.0).by_host


def test_what_has_a_graph_is_data_all_the_same() -> None:
    points = POINTS.clone().requires_grad_()
    assert not Feed(points, sf.key(0), 0.1).draw(3, 0).requires_grad


def test_the_wrong_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\(3, key\) must return \(3, \.\.\.\), got \[2, 2\]"):
        Feed(lambda n, key: POINTS[:2], sf.key(0), 0.0).draw(3, 0)


@pytest.mark.parametrize(("free", "moves"), [(40_000, True), (39_999, False)])
def test_images_stay_on_the_host_where_they_would_fill_the_gpu(
    monkeypatch: pytest.MonkeyPatch, free: int, moves: bool
) -> None:
    images = Images(torch.zeros(100, 1, 10, 10, dtype=torch.uint8), None, "black", "all")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(Images, "to", lambda self, device: device)
    assert image_runs.near(images, "cuda") == ("cuda" if moves else images)
    assert image_runs.near(images, "cpu") == "cpu"
