"""Names of kernels as profilers of an H200 and of a CPU write them, and the time of each kind."""

import pytest
import torch

from examples.research.benchmark.gpu.kernels import KINDS, REST, kind_of_kernel, time_by_kernel
from tests.common import pixels, tiny_model


ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<8, at::native::"
KERNELS = {
    "nvjet_tst_192x192_64x4_1x2_h_bz_coopB_bias_TNN": "linear layers",
    "nvjet_qqtst_128x256_128x6_2x1_v_bz_TNN": "linear layers",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int, int, int>>>": "linear layers",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1": "linear layers",
    "void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16>": "linear layers",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1": "attention",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>": "attention",
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32": (
        "patch embedding as a convolution"
    ),
    "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>": "patch embedding as a convolution",
    f"{ELEMENTWISE}sigmoid_kernel_cuda(at::TensorIteratorBase&)::lambda": "GELU",
    f"{ELEMENTWISE}AUnaryFunctor<c10::BFloat16, float, at::native::binary_internal::MulFunctor<float>>": "GELU",
    f"{ELEMENTWISE}GeluCUDAKernelImpl(at::TensorIteratorBase&)": "GELU",
    "triton_poi_fused_mul_sigmoid_0": "GELU",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>": "LayerNorm",
    "triton_per_fused_add_native_layer_norm_1": "LayerNorm",
    f"{ELEMENTWISE}CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>>": "additions",
    "triton_poi_fused_add_2": "additions",
    f"{ELEMENTWISE}float8_copy_kernel_cuda(at::TensorIteratorBase&)": "float8 conversion",
    "triton_red_fused__to_copy_abs_amax_clamp_3": "float8 conversion",
    f"{ELEMENTWISE}direct_copy_kernel_cuda(at::TensorIteratorBase&)": "copies",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<c10::BFloat16>": "copies",
    "Memcpy DtoD (Device -> Device)": "copies",
    "void at::native::(anonymous namespace)::upsample_bilinear2d_out_frame<float, float>": REST,
    "aten::addmm": "linear layers",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::mkldnn_convolution": "patch embedding as a convolution",
    "aten::native_layer_norm": "LayerNorm",
    "aten::add": "additions",
    "aten::mul": "GELU",
    "aten::view": REST,
    "aten::amax": REST,
}


@pytest.mark.parametrize(("name", "kind"), KERNELS.items())
def test_the_kind_of_a_kernel(name, kind):
    assert kind_of_kernel(name) == kind


def test_every_kind_has_an_example():
    assert set(KERNELS.values()) == {*KINDS, REST}


@torch.inference_mode()
def test_times_of_a_model_on_a_cpu():
    model, images = tiny_model(), pixels(1)
    found = time_by_kernel(lambda: model(images), torch.device("cpu"), calls=2)
    assert set(found["kinds"]) == {*KINDS, REST}
    assert found["kernel_ms"] == pytest.approx(sum(found["kinds"].values()))
    assert found["kinds"]["float8 conversion"] == 0 < min(found["kinds"][kind] for kind in ("linear layers", "GELU"))
    assert len(found["largest_of_the_rest"]) == 3 and found["kernels"] > 100
    largest = list(found["largest_of_the_rest"].values())
    assert largest == sorted(largest, reverse=True) and sum(largest) < found["kinds"][REST]
    once = time_by_kernel(lambda: None, torch.device("cpu"), calls=1)
    assert once["kernel_ms"] == 0 and once["kernels"] == 0
