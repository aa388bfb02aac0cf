"""What is kept between forward passes gives the same maps, and is never used once it is out of date."""

import copy
import pickle

import pytest
import torch

from tests.common import pixels, tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.image_processing_vcp_clip import gaussian_smooth
from vcp_clip_hf.inference_cache import InferenceCache


VARIANTS = {
    "paper": {},
    "deep prompts at the end": {"deep_prompt_position": "end", "num_deep_prompt_tokens": 2},
    "no deep prompts": {"num_deep_prompt_tokens": 0},
    "no Pre-VCP": {"use_pre_vcp": False},
    "templates of unequal length": {
        "normal": ("a good {}", "{} is fine"),
        "abnormal": ("a bad {} here", "the broken {}"),
    },
}


def fresh(model: VCPCLIPModel, images: torch.Tensor, **options) -> torch.Tensor:
    """The map without anything kept: gradients are recorded."""
    with torch.enable_grad():
        return model(images, **options).anomaly_map.detach()


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_kept_values_change_nothing(fields):
    model, images = tiny_model(**fields), pixels(3)
    with torch.no_grad():
        first, second = model(images).anomaly_map, model(images).anomaly_map
    assert model._cache._entries.keys() & {"prefix", "text"}
    assert torch.equal(first, second)
    torch.testing.assert_close(first, fresh(model, images), atol=1e-5, rtol=0)


def test_little_of_the_text_is_left_to_do():
    """One row of words behind the prefix for each block, instead of the sequences."""
    model, images = tiny_model(), pixels(2)
    tokens = []
    layer = model.clip.text_model.encoder.layers[1]
    layer.mlp.fc1.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[:-1].numel()))
    with torch.no_grad():
        model(images)
        model(images)
    plan = model._prompt_plan(None)
    prefix, after = plan.prefix_length, plan.token_ids.shape[1] - plan.prefix_length
    assert tokens == [2 * prefix, 2 * 2 * after, 2 * 2 * after] and after < prefix


CHANGES = {
    "a word embedding": lambda model: model.get_input_embeddings().weight.mul_(1.1),
    "a block": lambda model: model.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5),
    "a deep prompt": lambda model: model.deep_prompts.embeddings.add_(0.5),
    "its projection": lambda model: model.deep_prompts.projection.weight.mul_(1.5),
    "the position table": lambda model: model.clip.vision_model.embeddings.position_embedding.weight.mul_(3),
    "a loaded state": lambda model: model.load_state_dict(
        {name: value * 1.2 for name, value in model.state_dict().items() if value.is_floating_point()}, strict=False
    ),
    "a parameter put in place of another": lambda model: setattr(
        model.deep_prompts, "embeddings", torch.nn.Parameter(torch.rand_like(model.deep_prompts.embeddings))
    ),
    "a module put in place of another": lambda model: setattr(
        model.deep_prompts, "projection", torch.nn.Linear(32, 32)
    ),
    "prompts": lambda model: model.set_prompts(["a fine {} here"], ["bad {}"], tiny_tokenizer()),
    # what is left is what bfloat16 leaves: the parameters are the same, their memory is not, and nothing is counted
    "the number format and back": lambda model: model.bfloat16().float(),
    "a part's number format and back": lambda model: model.clip.text_model.bfloat16().float(),
    "other memory behind a parameter": lambda model: setattr(
        model.deep_prompts.embeddings, "data", torch.rand_like(model.deep_prompts.embeddings)
    ),
    "through .data, then cleared": lambda model: (
        model.deep_prompts.embeddings.data.add_(0.5),
        model._cache.clear(),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_kept_values_are_never_stale(change):
    model, images = tiny_model(), pixels(2)
    before = model(images).anomaly_map
    change(model)
    after = model(images).anomaly_map
    torch.testing.assert_close(after, fresh(model, images), atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-4, "the change does something"


@torch.no_grad()
def test_another_number_format_in_between():
    model, images = tiny_model(), pixels(2)
    before = model(images).anomaly_map
    model.bfloat16()
    assert not model._cache._entries, "nothing holds the former memory"
    half = model(images).anomaly_map
    torch.testing.assert_close(half, before, atol=0.05, rtol=0)
    assert torch.equal(half, model(images).anomaly_map)


def test_the_memory_that_is_compared_is_held():
    """Or the next tensor could be put at the same address, and be taken for the former one."""
    cache, parameter = InferenceCache(), torch.nn.Parameter(torch.zeros(1000))
    with torch.no_grad():
        assert cache.get("sum", None, [parameter], lambda: parameter.sum().item()) == 0
        for value in range(1, 20):
            parameter.data = torch.full((1000,), float(value))
            assert cache.get("sum", None, [parameter], lambda: parameter.sum().item()) == 1000 * value


def test_an_optimiser_step_in_between():
    model, images = tiny_model(), pixels(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        with torch.no_grad():
            kept = model(images).anomaly_map
        torch.testing.assert_close(kept, fresh(model, images), atol=1e-5, rtol=0)
        model(images, labels=torch.zeros(2, 48, 48)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_prompts_for_one_call_and_back_again():
    model, images = tiny_model(), pixels(2)
    other = torch.tensor([[[512, 5, 514, 513]], [[512, 7, 9, 514]]])
    other = torch.nn.functional.pad(other, (0, 1), value=513)
    with torch.no_grad():
        first = model(images).anomaly_map
        once = model(images, prompt_input_ids=other).anomaly_map
        again = model(images).anomaly_map
    assert torch.equal(first, again) and (once - first).abs().max() > 1e-4
    torch.testing.assert_close(once, fresh(model, images, prompt_input_ids=other), atol=1e-5, rtol=0)


def test_sizes_in_turn():
    model = tiny_model()
    with torch.no_grad():
        for size in ((48, 48), (24, 40), (48, 48), (32, 32)):
            images = pixels(1, *size)
            torch.testing.assert_close(model(images).anomaly_map, fresh(model, images), atol=1e-5, rtol=0)


def test_not_while_gradients_are_recorded_nor_in_training():
    model, images = tiny_model(), pixels(1)
    model(images, labels=torch.zeros(1, 48, 48)).loss.backward()
    assert model.deep_prompts.embeddings.grad.abs().sum() > 0
    assert model._cache._entries.keys() == {"positions"}, "which are frozen"
    with torch.no_grad():
        model(images)
        assert "prefix" in model._cache._entries
        model.train()
        assert not model._cache._entries
        assert not torch.equal(model(images).anomaly_map, model(images).anomaly_map), "dropout"


def test_eager_attention_takes_the_plain_road():
    model, images = tiny_model(), pixels(2)
    expected = fresh(model, images)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(model(images).anomaly_map, expected, atol=1e-5, rtol=0)
    assert "prefix" not in model._cache._entries


def test_inference_mode_and_then_no_grad():
    model, images = tiny_model(), pixels(2)
    with torch.inference_mode():
        first = model(images).anomaly_map
    with torch.no_grad():
        second = model(images).anomaly_map
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    model(images, labels=torch.zeros(2, 48, 48)).loss.backward()


def test_copies_and_files_carry_nothing_along():
    model, images = tiny_model(), pixels(1)
    with torch.no_grad():
        model(images)
        twin = copy.deepcopy(model)
        assert not twin._cache._entries
        twin.deep_prompts.embeddings.add_(0.5)
        torch.testing.assert_close(twin(images).anomaly_map, fresh(twin, images), atol=1e-5, rtol=0)
    assert not pickle.loads(pickle.dumps(model._cache))._entries


def test_parameters_made_in_inference_mode_are_not_counted_so_nothing_is_kept():
    cache, made = InferenceCache(), []
    with torch.inference_mode():
        parameter = torch.zeros(2)
    for _ in range(2):
        cache.get("x", 0, [parameter], lambda: made.append(1))
    assert len(made) == 2


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_nothing_waits_for_the_device(fields):
    """
    Tensors on `meta` have no values: whatever copies one to the host, or mixes in a tensor of the host, fails there.
    So it would on a GPU wait for the work before it, or fail.
    """
    model, images = tiny_model(**fields).to("meta"), pixels(2).to("meta")
    processor = VCPCLIPImageProcessor.for_model(model.config)
    with torch.inference_mode():
        for _ in range(2):  # what is kept is made, then used
            outputs = model(images)
        smooth = gaussian_smooth(outputs.anomaly_map, processor.smoothing_sigma)
        scores = processor.scoring().score_tensor(smooth, [])
    assert scores.device.type == "meta" and scores.shape == (2,)
    labels = torch.zeros(2, 48, 48, dtype=torch.bool, device="meta")
    model.train()
    model(images, labels=labels).loss.backward()
    assert all(p.grad.device.type == "meta" for p in model.parameters() if p.requires_grad)
    with pytest.raises(RuntimeError, match="meta"):  # the check of its values would wait
        model(images, labels=labels.float())
