"""The weights that a teacher takes, or starts from, in place of random ones: torchvision's, or a file of one's own."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dwa_core.errors import InputError
from dwa_core.models import SECOND_OUTPUT, build, find_builders


def find_published(name: str, weights: str):
    """torchvision's entry for the published `weights` of a network, for example IMAGENET1K_V1.

    Raises:
        InputError: there are none of that name, or they are for other inputs and outputs than ours.
    """
    import torchvision

    if name in SECOND_OUTPUT:
        reason = "whose published weights take images normalised in another way; null trains one"
        raise InputError(f"teacher.weights: {weights!r} is not allowed for {name}, {reason}")
    try:
        return torchvision.models.get_model_weights(name)[weights]
    except (ValueError, KeyError) as error:
        raise InputError(f"teacher.weights: {weights!r} is not known for {name}; {error}") from None


def load_own(network: nn.Module, path: Path, new_classes: int | None = None) -> nn.Module:
    """Loads the state dict of a safetensors file, of any float type, into `network`, and returns it.

    A last layer for `new_classes` stays as it is, where the file's is for another number of classes.

    Raises:
        InputError: the file cannot be read, or holds another network's weights.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"teacher.weights: {path} cannot be read; {error}") from None
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    state = keep_last_layer(state, own := network.state_dict(), new_classes)
    for name in [*own, *state]:
        if name.endswith("num_batches_tracked"):  # counts nothing that is used, and is often left out
            continue
        if name not in own or name not in state or own[name].shape != state[name].shape:
            shapes = [tuple(found[name].shape) if name in found else "none" for found in (state, own)]
            raise InputError(f"teacher.weights: {path} does not fit: {name} is {shapes[0]}, expected {shapes[1]}")
        if not state[name].isfinite().all():
            raise InputError(f"teacher.weights: {path} is not allowed; {name} has numbers that are not finite")
    network.load_state_dict(state, strict=False)
    return network


def keep_last_layer(state: dict, own: dict, classes: int | None) -> dict:
    """`state` with the last layer of `own`, for `classes`, where that of `state` is for another number of classes."""
    shapes = {key: (own[key].shape, state[key].shape) for key in state.keys() & own.keys()}
    last = [key for key, (a, b) in shapes.items() if a[:1] == (classes,) != b[:1] and a[1:] == b[1:]]
    return state | {key: own[key] for key in last}


def load_published(name: str, weights: str, classes: int, seed: int | None = None) -> nn.Module:
    """A torchvision network with torchvision's published `weights`, for example IMAGENET1K_V1.

    With a `seed`, which draws it, the last layer is a new one where the weights are for other classes.

    Raises:
        InputError: there are no such weights, they have other classes, or they cannot be downloaded or read.
    """
    find_builders("network", name)
    found = find_published(name, weights)
    outputs = len(found.meta["categories"])
    if outputs != classes and seed is None:
        message = f"{weights!r} has {outputs} classes, the data set has {classes}; null trains one"
        raise InputError(f"teacher.weights: {message}, teacher.fine_tune: true starts from these")
    try:
        # Left to torchvision, whatever the file holds would be unpickled, code included.
        state = found.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # the download, its checksum, or what the file would have run
        raise InputError(f"teacher.weights: {weights!r} cannot be downloaded or read; {error}") from None
    network = build(name, classes, "torchvision", 224, seed or 0)
    network.load_state_dict(keep_last_layer(state, network.state_dict(), classes))
    return network
