"""Results on a GPU: replayed passes, changed models, other prompts, references and sizes.

`python -m pytest --noconftest tests/test_on_gpu.py` needs torch, transformers, accelerate and pillow only; the
benchmark of a GPU runs it first. The tests for "cuda" are skipped without a GPU. Those for "cpu" record operators in
place of CUDA graphs, so that every test is proved on any machine.
"""

import math
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import seeded_pixels, tiny_config, tiny_model, tiny_model_with_stem_branch, tiny_tokenizer
from tests.operator_recorder import OperatorRecorder
from vcp_clip_hf import Acceleration, AnomalySegmentationPipeline, VCPCLIPImageProcessor, accelerate_inference
from vcp_clip_hf.accelerated_inference import accelerated_or_plain


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")

# Largest difference of maps: in float32, added up in another order; in bfloat16, whose rounding alone moves the maps
# of this tiny model by 1e-2; and replayed on a GPU, where a library may choose another kernel
ROUNDING = 5e-5
TOLERANCES = {torch.float32: ROUNDING, torch.bfloat16: 1e-2}
REPLAYED = {torch.float32: ROUNDING, torch.bfloat16: 2e-3}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request, monkeypatch) -> str:
    """Return a device on which passes are recorded."""
    torch.manual_seed(333)
    if request.param == "cpu":
        monkeypatch.setattr("vcp_clip_hf.cuda_graphs.CUDARecorder", OperatorRecorder)
    else:  # cuDNN rounds the inputs of convolutions to 10 bits by default
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


@pytest.fixture
def close(request):
    """Return a function that compares tensors; the report of the test has the largest difference of all."""
    largest = 0.0

    def compare(ours, theirs, tolerance=ROUNDING):
        nonlocal largest
        ours, theirs = (torch.as_tensor(each).float().cpu() for each in (ours, theirs))
        assert ours.shape == theirs.shape and ours.isfinite().all()
        difference = (ours - theirs).abs().max().item()
        largest = max(largest, difference)
        request.node.user_properties[:] = [("largest_difference", largest)]
        assert difference <= tolerance

    return compare


def model_on(device: str, dtype: torch.dtype = torch.float32, **fields):
    """Make a tiny model; with the authors' temperature, because the lively one of other tests magnifies rounding."""
    make = tiny_model_with_stem_branch if fields.pop("stem_branch", False) else tiny_model
    model = make(**fields)
    with torch.no_grad():
        for scale in (model.base_logit_scale, model.vcp_logit_scale):
            if scale is not None:
                scale.fill_(math.log(1 / 0.07))
    return model.to(device, dtype)


def images(device: str, batch_size: int = 1, side: int = 48, seed: int = 0, dtype: torch.dtype = torch.float32):
    return seeded_pixels(batch_size, side, seed).to(device, dtype)


def recorded(fast, *arguments, **options):
    """Call until the pass is replayed; a test without a recorded pass would say nothing."""
    for _ in range(3):
        outputs = fast(*arguments, **options)
    assert fast.captured.describe(), "no pass was recorded"
    return outputs


# --- equal to the plain model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("fields", [{}, {"use_pre_vcp": False}, {"stem_branch": True}], ids=["paper", "fixed", "stem"])
@torch.no_grad()
def test_replayed_maps_are_those_of_the_plain_model(device, close, fields, dtype):
    model = model_on(device, dtype, **fields)
    fast = accelerate_inference(model)
    recorded(fast, images(device, 2, dtype=dtype))
    for seed in range(4):
        batch = images(device, 2, seed=seed, dtype=dtype)
        close(fast(batch).anomaly_map, model(batch).anomaly_map, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "bfloat16"])
@torch.no_grad()
def test_replayed_maps_are_those_without_graphs(device, close, dtype):
    fast = accelerate_inference(model_on(device, dtype))
    recorded(fast, images(device, 2, dtype=dtype))
    for seed in range(4):
        batch = images(device, 2, seed=seed, dtype=dtype)
        replayed = fast(batch)
        with fast.captured.disabled():
            close(replayed.anomaly_map, fast(batch).anomaly_map, 0.0 if device == "cpu" else REPLAYED[dtype])


@torch.no_grad()
def test_a_batch_equals_its_images(device, close):
    fast = accelerate_inference(model_on(device))
    batch = images(device, 4)
    maps = recorded(fast, batch).anomaly_map
    for image, own in zip(batch, maps, strict=True):
        close(recorded(fast, image[None]).anomaly_map[0], own)


@torch.no_grad()
def test_results_are_not_overwritten_by_later_ones(device, close):
    fast = accelerate_inference(model_on(device))
    recorded(fast, images(device))
    first = fast(images(device, seed=1)).anomaly_map
    kept = first.clone()
    second = fast(images(device, seed=2)).anomaly_map
    close(first, kept, 0.0)
    assert (first - second).abs().max() > 1e-4


@torch.no_grad()
def test_inputs_of_ones_own_may_be_overwritten_at_once(device, close):
    fast = accelerate_inference(model_on(device))
    batch = images(device)
    expected = recorded(fast, batch).anomaly_map
    given = batch.clone()
    replayed = fast(given).anomaly_map
    given.zero_()
    close(replayed, expected)


# --- never the maps of something else --------------------------------------------------------------------------------


@torch.no_grad()
def test_other_sizes_and_batches_in_any_order(device, close):
    model = model_on(device)
    fast = accelerate_inference(model)
    for seed in range(3):
        for batch_size, side in ((2, 48), (1, 48), (2, 32), (3, 64), (1, 32), (4, 48), (3, 48)):
            batch = images(device, batch_size, side, seed)
            close(fast(batch).anomaly_map, model(batch).anomaly_map)
    assert fast.captured.describe()


def prompt_ids(word: int) -> torch.Tensor:
    slot = tiny_config().category_token_id
    return torch.tensor([[[512, each, slot, 513]] for each in (word, word + 1)])


@torch.no_grad()
def test_other_prompts(device, close):
    model = model_on(device)
    fast, batch = accelerate_inference(model), images(device)
    recorded(fast, batch)
    for word in (5, 9, 5, 9, 5, 9, 5):
        prompts = prompt_ids(word)
        theirs = model(batch, prompt_input_ids=prompts).anomaly_map
        for given in (prompts, prompts.to(device)):
            close(fast(batch, prompt_input_ids=given).anomaly_map, theirs)
        close(fast(batch).anomaly_map, model(batch).anomaly_map)


def an_optimizer_step(model):
    model.train()
    with torch.enable_grad():
        labels = torch.zeros(1, 48, 48, device=model.device)
        model(images(model.device), labels=labels).loss.backward()
    torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.05).step()
    model.eval()


CHANGES = {
    "an optimizer step": an_optimizer_step,
    "a query projection": lambda model: layer(model).self_attn.q_proj.weight.mul_(2),
    "a query projection through .data": lambda model: layer(model).self_attn.q_proj.weight.data.mul_(2),
    "a linear layer": lambda model: layer(model).mlp.fc1.weight.mul_(1.5),
    "the patch embedding": lambda model: model.clip.vision_model.embeddings.patch_embedding.weight.mul_(1.5),
    "a text block": lambda model: model.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5),
    "loaded weights": lambda model: model.load_state_dict(
        {name: 1.1 * value for name, value in model.state_dict().items() if value.is_floating_point()}, strict=False
    ),
    "prompts": lambda model: model.set_prompts(["a fine {} here"], ["bad {}"], tiny_tokenizer()),
    "the fusion weight": lambda model: setattr(model.config, "fusion_weight", 0.1),
}


def layer(model):
    return model.clip.vision_model.encoder.layers[1]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_a_changed_model(device, close, change):
    model, batch = model_on(device), images(device, 2)
    fast = accelerated_or_plain(model)
    before = recorded(fast, batch).anomaly_map
    change(model)
    for _ in range(3):
        fast = accelerated_or_plain(model, fast)
        after = fast(batch).anomaly_map
        close(after, model(batch).anomaly_map)
    assert (after - before).abs().max() > 2 * ROUNDING, "the change has an effect"


@torch.no_grad()
def test_a_copy_of_another_dtype(device, close):
    model = model_on(device)
    fast = accelerate_inference(model)
    exact = recorded(fast, images(device)).anomaly_map
    fast.to(torch.bfloat16)
    rounded = recorded(fast, images(device)).anomaly_map
    close(rounded, exact, 0.02)
    assert (rounded - exact).abs().max() > 1e-4, "not the maps of the former weights"


# --- threads, streams, modes -----------------------------------------------------------------------------------------


def test_threads_with_streams_of_their_own(device, close):
    fast = accelerate_inference(model_on(device))
    with torch.inference_mode():
        batches = [images(device, seed=seed) for seed in range(4)]
        expected = [recorded(fast, each).anomaly_map.cpu() for each in batches]
    found = [[] for _ in batches]
    if device == "cuda":
        torch.cuda.synchronize()

    def work(index):
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(20):
                found[index].append(fast(batches[index]).anomaly_map.cpu())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for maps, right in zip(found, expected, strict=True):
        assert len(maps) == 20
        for each in maps:
            close(each, right)


@torch.no_grad()
def test_modes_of_gradients_in_any_order(device, close):
    model, batch = model_on(device), images(device)
    fast, expected = accelerate_inference(model), model(images(device)).anomaly_map
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode, torch.no_grad):
        with mode():
            close(fast(batch).anomaly_map, expected)
    with torch.autocast(device, dtype=torch.bfloat16):
        close(fast(batch).anomaly_map, expected, 0.02)
    close(fast(batch).anomaly_map, expected)


@torch.no_grad()
def test_a_pass_that_cannot_be_recorded_leaves_nothing_behind(device, close):
    model, batch = model_on(device), images(device)
    fast = accelerate_inference(model)
    read_by_the_host = []
    fast.pre_vcp.register_forward_hook(lambda module, args, output: read_by_the_host.append(output.sum().item()))
    for seed in range(4):
        given = images(device, seed=seed)
        close(fast(given).anomaly_map, model(given).anomaly_map)
    assert not fast.captured.describe()
    if device == "cuda":
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device=device).isfinite().all()
    close(recorded(accelerate_inference(model), batch).anomaly_map, model(batch).anomaly_map)


# --- the pipeline ----------------------------------------------------------------------------------------------------


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    values = np.random.default_rng(seed).integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((80, 60), Image.Resampling.BICUBIC) for each in values]


@pytest.fixture
def pipelines(device) -> tuple[AnomalySegmentationPipeline, AnomalySegmentationPipeline]:
    """Return a pipeline of the accelerated copy, and one of the plain model."""
    model = model_on(device)
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    return tuple(
        AnomalySegmentationPipeline(model=model, image_processor=processor, device=device, accelerate=accelerate)
        for accelerate in (True, False)
    )


def test_a_run_whose_last_batch_is_smaller(pipelines, close):
    ours, plain = pipelines
    given = pictures(11)
    for result, image in zip(ours(given, batch_size=4), given, strict=True):
        expected = plain(image)
        close(result["anomaly_map"], expected["anomaly_map"])
        close(result["score"], expected["score"])
    assert ours._network.captured.describe()


def test_other_references(pipelines, close):
    given = pictures(8)
    for references in (given[:1], given[1:3], None, given[:1]):
        for each in pipelines:
            each.set_references(references)
        for image in given[3:]:
            ours, theirs = (each(image)["anomaly_map"] for each in pipelines)
            close(ours, theirs)
    assert pipelines[0]._network.captured.describe()


def test_an_image_in_tiles(pipelines, close):
    image = pictures(1)[0].resize((160, 120))
    for _ in range(3):
        ours, theirs = (each(image, tile_size=48)["anomaly_map"] for each in pipelines)
        close(ours, theirs)


# --- options of the copy ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_compiled_float8_is_close_or_refused(device, close):
    model, batch = model_on(device, torch.bfloat16), images(device, 2, dtype=torch.bfloat16)
    if device == "cpu" or torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(ValueError, match="float8"):
            accelerate_inference(model, Acceleration(float8=True))
        return
    fast = accelerate_inference(model, Acceleration(float8=True))
    close(recorded(fast, batch).anomaly_map, model(batch).anomaly_map, 0.1)
    layer(model).mlp.fc1.weight.mul_(1.5)
    again = accelerated_or_plain(model, fast, fast.settings)
    assert again is not fast
    close(again(batch).anomaly_map, model(batch).anomaly_map, 0.1)


@torch.no_grad()
def test_compiled_pointwise_operations(device, close):
    model, batch = model_on(device), images(device, 2)
    fast = accelerate_inference(model, Acceleration(compile_pointwise=True))
    close(recorded(fast, batch).anomaly_map, model(batch).anomaly_map)
