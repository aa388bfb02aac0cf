"""What users of transformers, accelerate and PEFT expect of any model: hooks, offloading, adapters, gradients."""

import copy
import json
import warnings

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, Trainer, TrainingArguments
from transformers.utils import logging

from tests.common import pixels, tiny_config, tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel


def labels_for(images: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(images.shape[0], *images.shape[-2:])
    labels[:, 8:24, 8:24] = 1
    return labels


# --- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_forward_hooks_fire_on_every_module(training, attention):
    model = tiny_model().train(training)
    model.set_attn_implementation(attention)
    fired = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    with torch.set_grad_enabled(training):
        model(pixels(1))
    containers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    # CLIPModel itself has a forward pass of its own, for pairs of images and texts; dropout acts in training only
    silent = {name for name, _ in model.named_modules()} - fired - containers - {"clip", "deep_prompts.dropout"}
    assert not silent


@torch.no_grad()
def test_a_hook_may_change_the_result():
    """Steer activations: every block's output is what the next one reads."""
    model, images = tiny_model(), pixels(1)
    before = model(images).anomaly_map
    for layer in (model.clip.vision_model.encoder.layers[1], model.clip.text_model.encoder.layers[1]):
        handle = layer.register_forward_hook(lambda _, inputs, output: output + torch.randn_like(output))
        assert (model(images).anomaly_map - before).abs().max() > 1e-3
        handle.remove()
    assert torch.equal(model(images).anomaly_map, before), "the model keeps nothing"


def test_gradients_of_the_input():
    """Check the gradients that attribution methods read."""
    images = pixels(1).requires_grad_()
    tiny_model()(images).anomaly_map.sum().backward()
    assert images.grad.abs().sum() > 0


# --- offloading ------------------------------------------------------------------------------------------------------


OFFLOADING = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model, torch.device("cpu")),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder / "weights", torch.device("cpu")),
}


@pytest.mark.parametrize("offload", OFFLOADING.values(), ids=OFFLOADING.keys())
@torch.no_grad()
def test_offloaded_weights_give_the_same_maps(offload, tmp_path):
    model, images = tiny_model(), pixels(2)
    expected = model(images).anomaly_map
    offloaded = offload(model, tmp_path)
    assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    torch.testing.assert_close(offloaded(images).anomaly_map, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_towers_of_an_offloaded_model_can_be_called_one_by_one():
    model, images = tiny_model(), pixels(2)
    tokens, embeds = model.encode_image(images)
    expected = model.encode_text(embeds)
    offloaded = accelerate.cpu_offload(model, torch.device("cpu"))
    assert torch.equal(offloaded.encode_image(images)[0][0], tokens[0])
    torch.testing.assert_close(offloaded.encode_text(embeds), expected, atol=1e-6, rtol=0)


def test_replicas_for_several_gpus_compute_the_same():
    """Check replicas as in `DataParallel`, which gives each GPU a replica whose parameters are plain tensors."""
    model, images = tiny_model(), pixels(2)
    modules = list(model.modules())
    replicas = [module._replicate_for_data_parallel() for module in modules]
    index = {id(module): number for number, module in enumerate(modules)}
    for module, replica in zip(modules, replicas, strict=True):
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[index[id(child)]]
        for name, parameter in module._parameters.items():
            replica._parameters.pop(name, None)
            setattr(replica, name, None if parameter is None else parameter.clone())
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    outputs = replicas[0](images, labels=labels_for(images))
    torch.testing.assert_close(outputs.anomaly_map, model(images).anomaly_map, atol=1e-6, rtol=0)
    outputs.loss.backward()
    assert model.deep_prompts.embeddings.grad.abs().sum() > 0


@torch.no_grad()
def test_loading_with_less_memory_than_weights(tmp_path):
    model, images = tiny_model(), pixels(2)
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="100KB")
    loaded = VCPCLIPModel.from_pretrained(
        tmp_path / "checkpoint", device_map="auto", max_memory={"cpu": "300KB"}, offload_folder=tmp_path / "weights"
    )
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map, atol=1e-6, rtol=0)


# --- trainable towers and adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_a_tower_that_requires_gradients_is_trained(tower):
    model = tiny_model()
    getattr(model.clip, tower).requires_grad_(True)
    model.train()
    other = "text_model" if tower == "vision_model" else "vision_model"
    assert getattr(model.clip, tower).training and not getattr(model.clip, other).training
    images = pixels(2)
    model(images, labels=labels_for(images)).loss.backward()
    missing = [name for name, p in getattr(model.clip, tower).named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad is None for p in getattr(model.clip, other).parameters())


def test_a_trained_tower_checkpoints_its_activations():
    gradients = []
    model, images = tiny_model(deep_prompt_dropout=0.0), pixels(2)
    model.clip.vision_model.requires_grad_(True)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train().zero_grad()
        model(images, labels=labels_for(images)).loss.backward()
        gradients.append(model.clip.vision_model.encoder.layers[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_a_trained_tower_is_not_left_out_of_a_checkpoint(tmp_path):
    model = tiny_model(backbone_name_or_path="somewhere/clip")
    model.save_pretrained(tmp_path / "frozen", adapter_only=True)
    model.clip.vision_model.requires_grad_(True)
    with pytest.raises(ValueError, match="adapter_only=False"):
        model.save_pretrained(tmp_path / "trained", adapter_only=True)


@pytest.mark.parametrize("training", [False, True])
def test_deep_prompts_may_be_in_another_mode_than_the_rest(training):
    model = tiny_model().train(training)
    model.deep_prompts.train(not training)
    assert model(pixels(2)).anomaly_map.isfinite().all()


LINEAR_LAYERS = [
    "clip.vision_model.encoder.layers.0.self_attn.q_proj",
    "clip.vision_model.encoder.layers.2.mlp.fc1",
    "clip.visual_projection",
    "clip.text_model.encoder.layers.1.self_attn.v_proj",
    "clip.text_projection",
    "feature_projections.1",
    "deep_prompts.projection",
    "post_vcp.query_projection",
    "post_vcp.key_projection",
    "post_vcp.value_projection",
    "post_vcp.output_projection",
]


@pytest.mark.parametrize("target", LINEAR_LAYERS)
def test_lora_on_a_linear_layer_has_effect_and_is_trained(target):
    model, images = tiny_model(), pixels(2)
    with torch.no_grad():
        before = model(images).anomaly_map
    peft_model = get_peft_model(model, LoraConfig(target_modules=[target], r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        after = peft_model(images).anomaly_map
        assert (after - before).abs().max() > 1e-4
        with peft_model.disable_adapter():
            torch.testing.assert_close(peft_model(images).anomaly_map, before, atol=1e-6, rtol=0)
    peft_model(images, labels=labels_for(images)).loss.backward()
    lora = [p for name, p in peft_model.named_parameters() if "lora_" in name]
    assert len(lora) == 2 and all(p.grad.abs().sum() > 0 for p in lora)


@torch.no_grad()
def test_switching_adapters_gives_the_right_maps_at_once():
    model, images = tiny_model(), pixels(2)
    plain = model(images).anomaly_map
    config = LoraConfig(target_modules=["q_proj", "v_proj", "key_projection"], r=2, init_lora_weights=False)
    peft_model = get_peft_model(model, config, adapter_name="first").eval()
    peft_model.add_adapter("second", config)
    maps = {}
    for name in ("first", "second", "first", "second"):
        peft_model.set_adapter(name)
        found = peft_model(images).anomaly_map
        assert torch.equal(maps.setdefault(name, found), found)
    assert (maps["first"] - maps["second"]).abs().max() > 1e-3
    with peft_model.disable_adapter():
        torch.testing.assert_close(peft_model(images).anomaly_map, plain, atol=1e-6, rtol=0)
    peft_model.set_adapter("first")
    merged = copy.deepcopy(peft_model).merge_and_unload()
    torch.testing.assert_close(merged(images).anomaly_map, maps["first"], atol=1e-5, rtol=0)


def test_dropout_of_an_adapter_inside_clip_acts_in_training_only():
    target = r"clip\.vision_model.*q_proj"
    config = LoraConfig(target_modules=target, r=2, lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(tiny_model(deep_prompt_dropout=0.0), config)
    images = pixels(1)
    model.train()
    assert not torch.equal(model(images).anomaly_map, model(images).anomaly_map)
    model.eval()
    assert torch.equal(model(images).anomaly_map, model(images).anomaly_map)


@torch.no_grad()
def test_writes_through_data_are_seen():
    """Swap weights as averages of weights (EMA) are swapped in."""
    model, images = tiny_model(), pixels(2)
    before = model(images).anomaly_map
    for parameter in (model.deep_prompts.embeddings, model.clip.text_model.encoder.layers[0].mlp.fc1.weight):
        former = parameter.data.clone()
        parameter.data.mul_(1.5)
        assert (model(images).anomaly_map - before).abs().max() > 1e-4
        parameter.data.copy_(former)
        assert torch.equal(model(images).anomaly_map, before)


def test_gradients_are_averaged_over_accumulated_batches(tmp_path):
    """Check the scale: since `forward` takes keyword arguments, Trainer could assume that the loss divides itself."""
    rows = [{"pixel_values": image, "labels": labels_for(image[None])[0]} for image in pixels(4)]
    moved = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = tiny_model(deep_prompt_dropout=0.0)
        before = model.post_vcp.output_projection.weight.detach().clone()
        arguments = TrainingArguments(
            tmp_path / str(accumulation),
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            report_to=[],
            use_cpu=True,
            data_seed=0,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        moved.append((model.post_vcp.output_projection.weight.detach() - before).norm().item())
    assert moved[1] == pytest.approx(moved[0], rel=0.05)


# --- outputs and arguments -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_are_the_image_towers():
    model, images = tiny_model(), pixels(2)
    outputs = model(images, output_hidden_states=True)
    assert len(outputs.hidden_states) == 5 and outputs.hidden_states[0].shape == (2, 37, 64)
    tokens, _ = model.encode_image(images)
    for layer, expected in zip(model.config.feature_layers, tokens, strict=True):
        assert torch.equal(outputs.hidden_states[layer][:, 1:], expected)
    assert model(images).hidden_states is None
    chosen = model(images, output_hidden_states=[1, -1]).hidden_states
    assert [state is not None for state in chosen] == [False, True, False, False, True]
    assert torch.equal(chosen[1], outputs.hidden_states[1]) and torch.equal(chosen[4], outputs.hidden_states[4])


@torch.no_grad()
def test_the_configuration_may_ask_for_attentions_and_hidden_states():
    model, images = tiny_model(), pixels(1)
    assert model(images).attentions is None
    model.set_attn_implementation("eager")
    model.config.output_attentions = model.config.output_hidden_states = True
    outputs = model(images)
    assert len(outputs.attentions) == 4 and len(outputs.hidden_states) == 5
    outputs = model(images, output_attentions=False, output_hidden_states=False)
    assert outputs.attentions is None and outputs.hidden_states is None


def test_transformers_arguments_are_accepted_and_misspelled_ones_refused():
    model = tiny_model()
    model(pixels(1), num_items_in_batch=1)
    with pytest.raises(TypeError, match="no argument 'output_layer_map'; did you mean 'output_layer_maps'"):
        model(pixels(1), output_layer_map=True)


@torch.no_grad()
def test_double_precision():
    model, images = tiny_model(), pixels(2)
    expected = model(images)
    outputs = model.double()(images.double())
    assert outputs.text_embeds.dtype == torch.float64 and outputs.anomaly_map.dtype == torch.float32
    torch.testing.assert_close(outputs.anomaly_map, expected.anomaly_map, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "found"), [((2, 4, 35, 64), "35"), ((2, 3, 36, 64), r"\(2, 3, 36, 64\)"), ((2, 4, 36), r"\(2, 4, 36\)")]
)
def test_patch_tokens_of_a_wrong_shape_are_explained(shape, found):
    with pytest.raises(
        ValueError, match=rf"{found}.*expected \(batch_size, 4 feature layers, 36 patches of a 48 x 48"
    ):
        tiny_model()(patch_tokens=torch.zeros(shape), image_embeds=torch.zeros(2, 32))


def test_prompts_that_are_too_long_are_explained():
    long = torch.tensor([[[512, *[5] * 80, 514, 513]], [[512, *[7] * 80, 514, 513]]])
    with pytest.raises(ValueError, match="max_position_embeddings=77"):
        tiny_model()(pixels(1), prompt_input_ids=long)


def test_none_of_our_calls_is_deprecated():
    model, images = tiny_model().train(), pixels(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            model(images, labels=labels_for(images)).loss.backward()


# --- embeddings, saving, configuration -------------------------------------------------------------------------------


@torch.no_grad()
def test_the_vocabulary_can_grow_and_the_slot_stays_outside_of_it(tmp_path):
    model, images = tiny_model(), pixels(1)
    before = model(images).anomaly_map
    model.resize_token_embeddings(520)
    assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size == 520
    assert model.config.category_token_id == 520 and 520 in model.config.normal_prompt_input_ids[0]
    torch.testing.assert_close(model(images).anomaly_map, before, atol=1e-6, rtol=0)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(VCPCLIPModel.from_pretrained(tmp_path)(images).anomaly_map, before, atol=1e-6, rtol=0)


def test_the_token_embedding_can_be_replaced():
    model = tiny_model()
    embedding = torch.nn.Embedding(514, 32)
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding is model.clip.text_model.embeddings.token_embedding


def test_save_pretrained_has_the_signature_of_the_base_class(tmp_path):
    model = tiny_model()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, True, state, max_shard_size="100KB")
    loaded = VCPCLIPModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.prompt_norm.bias, model.prompt_norm.bias + 1)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1


def test_an_unknown_field_of_a_saved_configuration_is_kept_with_a_warning(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "fusion_weights": [0.5], "something_else": 1}))
    logger = logging.get_logger("vcp_clip_hf.configuration_vcp_clip")
    logger.addHandler(caplog.handler)
    try:
        config = VCPCLIPConfig.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert "'fusion_weights'" in caplog.text and "'fusion_weight'" in caplog.text
    assert "something_else" not in caplog.text
    assert config.fusion_weights == [0.5] and config.something_else == 1
    assert AutoModel.from_pretrained(tmp_path).config.fusion_weight == values["fusion_weight"]
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["fusion_weights"] == [0.5]


@pytest.mark.parametrize(
    "make", [lambda: tiny_config(fusion_weights=0.5), lambda: VCPCLIPConfig.from_dict({}, fusion_weights=0.5)]
)
def test_a_misspelled_field_given_by_hand_is_refused(make):
    with pytest.raises(ValueError, match="no field 'fusion_weights'; did you mean 'fusion_weight'"):
        make()


def test_the_model_can_be_pickled_before_and_after_a_call():
    """Pickle as worker processes and torch.save do; recording by hooks would not allow it."""
    import pickle

    model, images = tiny_model(), pixels(1)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).anomaly_map
        again = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(again(images).anomaly_map, expected, atol=1e-6, rtol=0)
    assert len(tiny_tokenizer()) == model.config.text_config.vocab_size
