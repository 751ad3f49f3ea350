"""What docs/results.md says of ResNet-18's distilled sets: one image of a batch makes up for the variances of all."""

import pytest
import torch

from dwa_core import augment
from dwa_core.batchnorm import BatchNormTerms, match_statistics
from dwa_paper.runs import store, teachers
from dwa_paper.runs.records import read_all
from dwa_paper.runs.sets import read_parquet
from dwa_paper.settings import grid
from dwa_paper.settings.schema import Setting


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    monkeypatch.setenv("DWA_ROOT", str(grid.SETTINGS.parent))


def find_rough(name: str) -> tuple:
    """A record of the setting `name`, the distilled set that it names, and which images are rough.

    Those whose neighbouring pixels differ by more than 1.6 times the median of the set.
    """
    profile, name = name.split("/")
    record = next(each for each in read_all(profile)[0].values() if each["setting"]["name"] == name)
    distilled = read_parquet(store.find("distilled", record["distilled"]["artifact"]))
    pixels = augment.to_unit_range(distilled.images_uint8)
    roughness = sum(pixels.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
    return record, distilled, roughness > 1.6 * roughness.median()


@pytest.mark.parametrize("method", ["dwa", "sre2l"])
def test_each_batch_of_resnet18_has_one_rough_image(method):
    _, distilled, rough = find_rough(f"resnet18/cifar10-resnet18-{method}-ipc10-authors")
    assert distilled.ipc_index[rough].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("method", "ipc", "count"), [("dwa", 10, 2), ("sre2l", 10, 0), ("dwa", 50, 7), ("sre2l", 50, 0)]
)
def test_hardly_any_under_a_teacher_of_200_epochs(method, ipc, count):
    _, distilled, rough = find_rough(f"paper/cifar10-resnet18-{method}-ipc{ipc}-authors")
    assert rough.sum() == count
    assert len(distilled.labels) == 10 * ipc


@pytest.mark.parametrize("name", ["dwa-ipc10-authors", "dwa-ipc10-authors-gvbsm", "sre2l-ipc10-authors-gvbsm"])
def test_convnet_has_none_on_cifar10(name):
    assert not find_rough(f"lite/cifar10-convnet-128-{name}")[2].any()


def test_without_it_the_batchnorm_terms_are_larger_by_more_than_half():
    record, distilled, rough = find_rough("resnet18/cifar10-resnet18-dwa-ipc10-authors")
    setting = Setting.model_validate({**record["setting"], "seeds": [0]})
    folder = store.find("teachers", record["teacher"]["artifact"])
    network = teachers.load(setting, len(distilled.classes), torch.device("cpu"), folder)
    terms_of = BatchNormTerms(match_statistics(network), setting.synthesis.r_var)
    first = distilled.ipc_index == 0
    totals = []
    for chosen in (first, first & ~rough):
        images = augment.to_unit_range(distilled.images_uint8[chosen])
        with torch.no_grad():
            network(augment.normalise(images, setting.images.mean, setting.images.distilled_std))
        totals.append(float(terms_of().sum()))
    assert totals[1] / totals[0] == pytest.approx(1.6, abs=0.05)
