"""Time on the device by kind of kernel, recognized by the kernels' names."""

import re
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


__all__ = ["KINDS", "REST", "kind_of_kernel", "time_by_kernel"]

REST = "rest"

# Kind -> what its kernels are called: by PyTorch, cuBLAS, CUTLASS, cuDNN, FlashAttention and inductor on a GPU, and
# by PyTorch on a CPU ("aten::..."). The first match counts
KINDS = {
    "attention": r"fmha|flash|sdpa|attention|softmax",
    "patch embedding as a convolution": r"implicit|conv(?!ert)|fprop|nchwtonhwc|nhwctonchw",
    "linear layers": r"gemm|nvjet|cutlass|cublas|splitk|gemv|scaled_mm|aten::(addmm|mm|bmm|linear|_addmm_activation)$",
    "float8 conversion": r"float8|fp8|quantize|triton_\w*amax",
    "LayerNorm": r"layer_?norm",
    # quick GELU is x * sigmoid(1.702 x): the other multiplications of the model are small
    "GELU": r"gelu|sigmoid|mulfunctor|mul_kernel|silu|triton_\w*mul|aten::(mul_?|sigmoid_?|gelu)$",
    "additions": r"functor_?add|addfunctor|add_kernel|triton_\w*add|aten::add_?$",
    "copies": r"copy|memcpy|memset|catarray|cat_|fillfunctor|triton_\w*(clone|cat)|aten::(cat|copy_|clone|fill_)$",
}


def kind_of_kernel(name: str) -> str:
    """Return the kind of a kernel by its name; `REST` for kernels that no pattern recognizes."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lower)), REST)


def time_by_kernel(run: Callable[[], object], device: torch.device, calls: int = 3) -> dict:
    """
    Profile calls.

    Args:
        run (`Callable`): the call; it was made before, so that nothing is compiled or allocated anew.
        device (`torch.device`): device whose kernels are counted; on a CPU, PyTorch's operations.
        calls (`int`, *optional*, defaults to 3): number of calls.

    Returns:
        `dict` with `kernel_ms`, the time of all kernels of one call in milliseconds; `kernels`, their number;
        `kinds`, kind -> milliseconds of one call; and `largest_of_the_rest`, the three kernels that take longest among
        those of no kind: name -> milliseconds of one call.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiled:
        for _ in range(calls):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    counted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kinds, rest, number = dict.fromkeys([*KINDS, REST], 0.0), {}, 0
    for event in profiled.key_averages():
        if event.device_type != counted:
            continue
        spent = 1e-3 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / calls
        kind = kind_of_kernel(event.key)
        kinds[kind] += spent
        number += event.count
        if kind == REST:
            rest[event.key] = spent
    largest = sorted(rest, key=rest.get, reverse=True)[:3]
    return {
        "kernel_ms": sum(kinds.values()),
        "kernels": number // calls,
        "kinds": kinds,
        "largest_of_the_rest": {name: rest[name] for name in largest},
    }
