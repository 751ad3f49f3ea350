"""Random numbers that depend on a key alone, for example (STUDENT, seed, epoch).

A fresh generator for each use makes a resumed run draw what an unbroken one draws, with no random state to store.
"""

import numpy as np
import torch

# What random numbers are for: the first number of every key, so that no two uses draw from one stream.
TEACHER, INITIAL_IMAGES, INITIAL_NOISE, VIEWS, CROPS, DIRECTION, STUDENT, LAYERS, CLASS_ORDER, VALIDATION = range(10)


def host_random(*key: int) -> np.random.Generator:
    """Random numbers on the host that depend on `key` alone."""
    return np.random.default_rng(np.random.SeedSequence(key))


def device_random(device: torch.device, *key: int) -> torch.Generator:
    """Random numbers on `device` that depend on `key` alone."""
    return torch.Generator(device).manual_seed(key_to_seed(*key))


def key_to_seed(*key: int) -> int:
    """A seed for torch that depends on `key` alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
