"""What a device's failures become. The texts are those of torch and its libraries."""

from __future__ import annotations

import traceback
import weakref

import pytest
import torch

from halp_worker.fates import DeviceBroken, DeviceOutOfMemory, FatalError
from halp_worker.model.capture import decoder_layers
from halp_worker.model.faults import as_fault

FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB, other allocations: 1 GB)"),
    RuntimeError("Invalid buffer size: 24.50 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
)

BROKEN = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, ...)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "HIP error: an illegal memory access was encountered",
    "GPU is lost. Reboot the system to recover this GPU",
    "GPU has fallen off the bus",
)

NEITHER = (
    MemoryError(),
    MemoryError("out of memory"),
    ValueError("CUDA out of memory"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(...)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`"),
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    FatalError("layer 3: its hook fired 2 times at prefill"),
    KeyboardInterrupt(),
)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_device_asks_for_a_smaller_batch(error):
    """In whichever of its libraries the memory ran out."""
    fault = as_fault(error)
    assert isinstance(fault, DeviceOutOfMemory)
    assert str(error).splitlines()[0] in str(fault)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_device_ends_the_process(text):
    """The message says what CUDA said, that nothing was acknowledged, and where to look."""
    fault = as_fault(RuntimeError(text))
    assert isinstance(fault, DeviceBroken)
    assert text.splitlines()[0] in str(fault)
    for part in ("nothing of the batch was acknowledged", "nvidia-smi", "Xid", "--max-attempts"):
        assert part in str(fault)
    assert "\n" not in str(fault)


@pytest.mark.parametrize("error", NEITHER, ids=repr)
def test_what_says_nothing_of_the_device_stays_what_it_is(error):
    """A wrong shape, a refused launch and this host's memory are no fault of the device."""
    assert as_fault(error) is None


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch before 2.8")
def test_the_runtimes_own_errors_are_told_apart_by_their_words():
    """Full, refused, and everything else, which is sticky."""
    make = torch.AcceleratorError
    assert isinstance(as_fault(make("CUDA error: out of memory")), DeviceOutOfMemory)
    assert as_fault(make("CUDA error: invalid argument")) is None
    assert isinstance(as_fault(make("CUDA error: words of a later version")), DeviceBroken)


def test_torch_itself_runs_out_of_memory_in_these_words():
    """The CPU's allocator is the one that can be asked for too much here."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert isinstance(as_fault(caught.value), DeviceOutOfMemory)


class Breaks:
    """Raises from inside the model: a hook of its last decoder layer, at prefill."""

    def __init__(self, model, make_error):
        self.make_error = make_error
        self.states = None
        layer = decoder_layers(model)[-1]
        self.handle = layer.register_forward_pre_hook(self.hook)

    def hook(self, module, inputs):
        self.states = weakref.ref(inputs[0])
        raise self.make_error()


@pytest.fixture
def breaks(bench):
    """`breaks(error type or function)`: the bench's model fails so until the test ends."""
    made = []

    def make(make_error):
        made.append(Breaks(bench().loaded.model, make_error))
        return made[-1]

    yield make
    for one in made:
        one.handle.remove()


def ask_too_much():
    torch.empty(1 << 58)


@pytest.mark.slow
@pytest.mark.parametrize("make_error", [ask_too_much, lambda: FULL[0]], ids=["real", "cuda"])
def test_a_batch_that_did_not_fit_leaves_nothing_on_the_device(bench, breaks, make_error):
    """While its error is still in hand, its tensors are gone; a smaller batch goes through."""
    one = bench()
    samples = one.samples()
    broken = breaks(make_error)
    with pytest.raises(DeviceOutOfMemory) as caught:
        one.extract(samples)
    assert broken.states is not None
    assert broken.states() is None
    assert isinstance(caught.value.__cause__, RuntimeError)
    broken.handle.remove()
    assert len(one.extract(samples[:1]).features) == 1


@pytest.mark.slow
def test_the_traceback_of_a_batch_that_did_not_fit_keeps_its_lines(bench, breaks):
    """As text: a person still sees where it happened, and no frame keeps a tensor."""
    breaks(ask_too_much)
    with pytest.raises(DeviceOutOfMemory) as caught:
        bench().extract(bench().samples())
    assert caught.value.__cause__.__traceback__ is None
    told = "".join(traceback.format_exception(caught.value))
    assert ", in extract" in told
    assert told.index(", in extract") < told.index(", in ask_too_much")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceBroken),
        (RuntimeError("shapes do not match"), RuntimeError),
        (FatalError("a hook"), FatalError),
        (MemoryError(), MemoryError),
    ],
    ids=repr,
)
def test_the_extractor_raises_faults_in_our_types_and_the_rest_as_it_is(
    bench, breaks, error, expected
):
    """Who catches them needs no torch to tell them apart."""

    def fail():
        raise error

    breaks(fail)
    with pytest.raises(expected) as caught:
        bench().extract(bench().samples())
    assert type(caught.value) is expected
    assert error in (caught.value, caught.value.__cause__)
