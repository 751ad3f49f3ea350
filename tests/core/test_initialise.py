"""Which real images the synthesis starts from."""

import pytest
import torch

from dwa_core import diversity, initialise
from dwa_core.synthesis import synthesize
from dwa_core.training import Progress


def test_drawn_images_are_of_their_class_and_never_repeat(digits):
    drawn = initialise.draw_real(digits.train, 10, 20, seed=0)
    assert drawn.shape == (20, 10)
    assert drawn.unique().numel() == 200
    assert torch.equal(digits.train.labels[drawn], torch.arange(10).expand(20, 10))


def test_drawn_images_depend_on_the_seed_and_larger_draws_begin_with_smaller(digits):
    drawn = initialise.draw_real(digits.train, 10, 20, seed=0)
    assert torch.equal(initialise.draw_real(digits.train, 10, 5, seed=0), drawn[:5])
    assert not torch.equal(initialise.draw_real(digits.train, 10, 20, seed=1), drawn)
    # The members of every class are listed in one order, so equal picks would show here.
    members = [(digits.train.labels == label).nonzero()[:, 0].tolist() for label in range(10)]
    ranks = {tuple(members[label].index(i) for i in drawn[:, label].tolist()) for label in range(10)}
    assert len(ranks) == 10


def test_herded_images_are_chosen_one_by_one_to_keep_their_mean_at_that_of_the_class():
    # Unit vectors of class 0: mean direction between 0 and 90 degrees. The first is the one at 45, and then the two
    # ends together come nearer to the mean than either with it again.
    angles = torch.tensor([0.0, 90.0, 45.0, 80.0, 180.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [2.0], [3.0], [1.0]])
    labels = torch.tensor([0, 0, 0, 0, 1])
    chosen = initialise.herd(features, labels, 1, 3)
    unit = torch.nn.functional.normalize(features[:4], dim=1)
    best = min(range(4), key=lambda i: float((unit[i] - unit.mean(0)).norm()))
    assert chosen[0].tolist() == [best]
    rest = [i for i in range(4) if i != best]
    second = min(rest, key=lambda i: float(((unit[best] + unit[i]) / 2 - unit.mean(0)).norm()))
    assert chosen[1].tolist() == [second]
    assert len(set(chosen[:, 0].tolist())) == 3, "without repetition"
    assert initialise.herd(features, labels, 1, 2).tolist() == chosen[:2].tolist()
    both = initialise.herd(features, labels, 2, 1)
    assert both.tolist() == [[best, 4]]


@pytest.mark.parametrize("initial", ["real", "herded"])
def test_synthesis_starts_from_the_images_that_its_recipe_names(initial, digits, tiny_teacher, tiny_setting, compute):
    still = {"initial": initial, "adjustment": "none", "iterations": 1, "learning_rate": 1e-9}
    setting = tiny_setting(ipc=2, synthesis=still)
    made, _ = synthesize(setting, digits.train, 10, tiny_teacher.network, compute, Progress("test"))
    images = setting.images
    features, _ = diversity.compute_features(tiny_teacher.network, digits.train, images.mean, images.std)
    expected = {
        "real": initialise.draw_real(digits.train, 10, 2, seed=0),
        "herded": initialise.herd(features, digits.train.labels, 10, 2),
    }
    assert torch.equal(made, digits.train.pictures(expected[initial].flatten()))
    assert not torch.equal(expected["real"], expected["herded"])
