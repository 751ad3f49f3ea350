"""How networks run: device, precision, memory format, torch.compile, and CUDA graphs."""

import copy
import functools
import os
import platform
import timeit
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import nn

from dwa_core.errors import InputError

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
NVIDIA_DRIVER = "/proc/driver/nvidia/version"  # there where Linux has loaded one
COMPILED_SIDE = 128  # pixels, from which a GPU is busy with kernels that the compiler can merge
compiler_failures = []  # of this process: after one, what need not be compiled is not


class Compute(NamedTuple):
    """The device that networks run on, the type of their convolutions and matrix products, and whether to compile.

    `compile` is True, False, or "auto": compile, and go on without where that fails.
    """

    device: torch.device
    precision: torch.dtype
    compile: Literal["auto", True, False] = False

    def compiles(self) -> bool:
        """Whether `run` compiles."""
        return bool(self.compile) and not compiler_failures

    def autocast(self) -> torch.autocast:
        """Context in which a network computes in `precision`; its weights stay as they are."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision is torch.bfloat16)

    def describe(self) -> str:
        """The GPU's name, or the CPU's and its threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        model = platform.processor() or platform.machine()
        try:
            with open("/proc/cpuinfo") as lines:
                model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
        return f"{model}, {torch.get_num_threads()} threads"


def choose(
    device: str = "auto", precision: str = "auto", compile: Literal["auto", True, False] = False, side: int = 0
) -> Compute:
    """The device and the precision that a setting asks for, and whether networks are compiled.

    Args:
        device: "cpu", "cuda", or "auto": CUDA where there is one, for which cuDNN then tries kernels.
        precision: "bf16", "fp32", or "auto": bf16 on GPUs that compute in it, and on CPUs that are faster in it.
        compile: True, False, or "auto": on CUDA where images have a `side` of COMPILED_SIDE or more.

    Raises:
        InputError: CUDA was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not available here; set it to cpu or auto")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if device == "auto" and not on_cuda and torch.version.cuda and os.path.exists(NVIDIA_DRIVER):
        wanted = f"this torch is for CUDA {torch.version.cuda}"
        print(f"warning: there is an NVIDIA driver, but no GPU that torch can use, so the CPU computes; {wanted}")
    if on_cuda:
        # Shapes stay the same for thousands of steps. The fastest kernel may differ from run to run.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else bf16_is_faster_on_cpu()
        precision = "bf16" if fast else "fp32"
    if compile == "auto" and not (on_cuda and side >= COMPILED_SIDE):
        compile = False
    return Compute(torch.device("cuda" if on_cuda else "cpu"), PRECISIONS[precision], compile)


def count_cpus() -> int:
    """The processor cores that this process may use, as a job of a cluster may not use all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def bf16_is_faster_on_cpu() -> bool:
    """Whether a convolution takes less time in bf16 than in fp32, by one try per process that takes milliseconds.

    Of two kinds of CPU with instructions for bf16, one took half the time in it (AMD EPYC), the other 1.7 times (Xeon).
    """
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return False
    seconds = {}
    for precision in PRECISIONS.values():
        layer = nn.Conv2d(128, 128, 3, padding=1, device="meta").to_empty(device="cpu")  # no random number is drawn
        layer = layer.to(precision, memory_format=torch.channels_last).requires_grad_(False)
        images = torch.zeros(4, 128, 16, 16, dtype=precision).contiguous(memory_format=torch.channels_last)
        _, *rest = timeit.repeat(lambda layer=layer, images=images: layer(images), number=1, repeat=6)
        seconds[precision] = min(rest)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def use_deterministic_algorithms() -> None:
    """From now on the same run on the same GPU gives the same bits; an operation that cannot raises RuntimeError.

    To be called before anything is computed on the GPU.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS's own condition for it
    torch.use_deterministic_algorithms(True)


def move_to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Moves `network` to `device` in the channels-last format, which both cuDNN and oneDNN prefer."""
    return network.to(device, memory_format=torch.channels_last)


def copy_frozen(network: nn.Module) -> nn.Module:
    """A copy of `network` in eval mode none of whose parameters gets a gradient."""
    twin = copy.deepcopy(network).eval()
    return twin.requires_grad_(False)


def cast_weights(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """Stores the weights of convolutions and linear layers of a frozen `network` in bf16, if that is the precision.

    `autocast` would make the same copies in every step. BatchNorm stays in fp32.
    """
    if precision is torch.bfloat16:
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(torch.bfloat16)
    return network


@functools.cache
def get_compiled_call() -> Callable:
    """torch.compile's version of a call: (function, tensors) -> what the function returns.

    One for all: functions of the same code and networks of the same layers share what was compiled for the first of
    them. Shapes are fixed, and CUDA graphs are left to Graphed.
    """
    from torch._functorch import config  # here because it takes seconds

    config.force_non_lazy_backward_lowering = True  # so that a backward pass that cannot be compiled is known at once
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(lambda function, *inputs: function(*inputs), dynamic=False)


def run(compute: Compute, function: Callable, *inputs: torch.Tensor):
    """What `function`, a network or one that calls some, returns for `inputs` in the precision of `compute`.

    Raises:
        InputError: it must be compiled, and cannot be.
    """
    with compute.autocast():
        if not compute.compiles():
            return function(*inputs)
        try:
            return get_compiled_call()(function, *inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            if "out of memory" in str(error):
                raise
            cause = getattr(error, "inner_exception", error)
            failure = f"{type(cause).__name__}: {[*str(cause).strip().splitlines(), ''][0][:200]}"
        if compute.compile != "auto":
            raise InputError(f"compile: torch.compile failed; {failure}; set it to auto or off")
        compiler_failures.append(failure)
        print(f"warning: torch.compile failed; {failure}; going on without it", flush=True)
        return function(*inputs)


class Graphed:
    """A function that works on tensors in place, called many times: on CUDA as replays of one graph.

    A step of a small network on small images takes the host longer to launch than the GPU to compute; a graph
    launches all its kernels at once. The first calls run as they are, and so do calls with inputs of another
    shape, such as the smaller last batch of an epoch. The function must not read from the device, and what it
    returns is lost. On a CPU it is just called.
    """

    WARM_UP = 3  # calls, in which cuDNN chooses its kernels and optimisers make their state

    def __init__(self, function: Callable, device: torch.device):
        self.function, self.device = function, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.inputs, self.graph, self.calls = [], None, 0

    def __call__(self, *inputs: torch.Tensor) -> None:
        if self.stream is None:
            self.function(*inputs)
            return
        # Larger than before: a run may have gone on just before the smaller last batch of an epoch.
        if self.graph is None and sum(map(len, inputs)) > sum(map(len, self.inputs)):
            self.inputs, self.calls = [tensor.clone() for tensor in inputs], 0
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            if [tensor.shape for tensor in inputs] != [tensor.shape for tensor in self.inputs]:
                self.function(*inputs)
            else:
                for own, given in zip(self.inputs, inputs, strict=True):
                    own.copy_(given, non_blocking=True)
                self.run_once()
        if inputs:
            self.join()  # else the caller's inputs might be overwritten while they are still read

    def run_once(self) -> None:
        """One call on the inputs of the graph, in the stream of its own."""
        self.calls += 1
        if self.calls <= self.WARM_UP:
            self.function(*self.inputs)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # Other threads, such as a DataLoader's, may go on with the device meanwhile.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.function(*self.inputs)
        self.graph.replay()

    def join(self) -> None:
        """Makes what comes next on the current stream wait for all calls so far."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
