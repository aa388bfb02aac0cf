"""The model: equal to the authors' tensors and to the plain equations; frozen where it must be."""

import copy

import pytest
import torch
from transformers import CLIPTokenizer, Trainer, TrainingArguments, ViTConfig, ViTModel

from tests.common import Golden, golden, pixels, tiny_clip, tiny_config, tiny_model, tiny_tokenizer
from tests.reference_forward import reference_forward
from vcp_clip_hf import VCPCLIPModel
from vcp_clip_hf.convert_vcp_clip_to_hf import convert_checkpoint, official_image_processor
from vcp_clip_hf.prompts import tokenize_prompts


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- parity with the authors' implementation ---------------------------------------------------------------------


def official(name: str) -> tuple[VCPCLIPModel, Golden]:
    values = golden(name)
    size, layers = values.config["image_size"], values.config["feature_layers"]
    return convert_checkpoint(values.checkpoint, values.backbone, size, layers, **values.prompts), values


@pytest.mark.parametrize("name", ["official_a", "official_b"])
def test_forward_equals_the_authors(name):
    model, values = official(name)
    expected = values.expected
    with torch.no_grad():
        patch_tokens, image_embeds = model.encode_image(expected["pixel_values"])
        outputs = model(expected["pixel_values"], labels=expected["mask"], output_layer_maps=True)
    for layer, tokens in zip(model.config.feature_layers, patch_tokens, strict=True):
        close(tokens, expected[f"patch_tokens_{layer}"][:, 1:])
    close(image_embeds, expected["image_embeds"])
    close(model.pre_vcp(image_embeds), expected["category_context"])
    close(outputs.image_embeds, expected["image_embeds"])
    close(outputs.text_embeds, expected["text_embeds"])
    close(outputs.base_layer_maps.transpose(0, 1), expected["maps_raw"])
    close(outputs.vcp_layer_maps.transpose(0, 1), expected["maps_new"])
    close(outputs.loss, expected["loss_base"] + expected["loss_vcp"], atol=1e-6)

    height, width = model.config.input_size
    processor = official_image_processor(model.config)
    assert processor.top_k_fraction == min(1, 2000 / (height * width))
    results = processor.post_process_anomaly_segmentation(outputs)
    for index, result in enumerate(results):
        close(result["anomaly_map"], expected["map_smooth"][index])
        assert result["score"] == pytest.approx(expected["image_score"][index].item(), abs=1e-5)


# our parameter -> the authors'; where theirs is a convolution over single patches, the last axis is dropped
GRADIENTS = {
    "pre_vcp.category_embeddings": "pre.prompt_query",
    "pre_vcp.mini_net.weight": "pre.prompt_linear1.fc.weight",
    "base_logit_scale": "pre.prompt_temp",
    "vcp_logit_scale": "post.prompt_temp_l1",
    "deep_prompts.projection.weight": "model.prompt_proj.weight",
    "deep_prompts.projection.bias": "model.prompt_proj.bias",
    "prompt_norm.weight": "model.prompt_norm.weight",
    "prompt_norm.bias": "model.prompt_norm.bias",
    "post_vcp.query_projection.weight": "post.q_proj_pre.weight",
    "post_vcp.query_projection.bias": "post.q_proj_pre.bias",
    "post_vcp.key_projection.weight": "post.k_proj_pre_1.weight",
    "post_vcp.value_projection.weight": "post.v_proj_pre_1.weight",
    "post_vcp.value_projection.bias": "post.v_proj_pre_1.bias",
    "post_vcp.output_projection.weight": "post.proj_post_t.weight",
    "post_vcp.output_projection.bias": "post.proj_post_t.bias",
}


@pytest.mark.parametrize("name", ["official_a", "official_b"])
def test_gradients_equal_the_authors(name):
    model, values = official(name)
    model.train()
    model.deep_prompts.dropout.p = 0.0
    model(values.expected["pixel_values"], labels=values.expected["mask"]).loss.backward()
    actual = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}

    theirs = values.gradients
    expected = {ours: theirs[key].reshape(actual[ours].shape) for ours, key in GRADIENTS.items()}
    expected["deep_prompts.embeddings"] = torch.cat(
        [theirs["model.prompt_embeddings"], theirs["model.deep_prompt_embeddings"]]
    )
    for index in range(len(model.config.feature_layers)):
        for part in ("weight", "bias"):
            expected[f"feature_projections.{index}.{part}"] = theirs[f"linear.fc.{index}.{part}"]
    for key, gradient in expected.items():
        assert (actual[key] - gradient).norm() <= 1e-3 * gradient.norm(), key
    # what is left is a constant on a whole category token, which the first LayerNorm removes
    assert actual.keys() - expected.keys() == {"pre_vcp.mini_net.bias"}
    assert actual["pre_vcp.mini_net.bias"].abs().max() < 1e-5


# --- equal to the plain equations --------------------------------------------------------------------------------

VARIANTS = {
    "paper": {},
    "baseline": {"use_pre_vcp": False, "use_post_vcp": False},
    "no Pre-VCP": {"use_pre_vcp": False},
    "no Post-VCP": {"use_post_vcp": False},
    "no deep prompts": {"num_deep_prompt_tokens": 0},
    "deep prompts at the end": {"deep_prompt_position": "end", "num_deep_prompt_tokens": 2},
    "one layer, r 3, 4 heads": {"feature_layers": [2], "num_category_tokens": 3, "post_vcp_num_heads": 4},
    "templates of unequal length": {
        "normal": ("a good {}", "this {} is fine"),
        "abnormal": ("a bad {} here", "a {}"),
        "deep_prompt_position": "end",
    },
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_equal_to_the_plain_equations(fields):
    model, images = tiny_model(**fields), pixels(2)
    outputs, plain = model(images, output_layer_maps=True), reference_forward(model, images)
    assert plain["anomaly_map"].std() > 0.02, "a flat map proves nothing"
    for name, value in plain.items():
        close(getattr(outputs, name), value, atol=2e-5)
    if not model.config.use_post_vcp:
        assert outputs.vcp_map is None and outputs.vcp_layer_maps is None
        assert torch.equal(outputs.anomaly_map, outputs.base_map)


@pytest.mark.parametrize("size", [(48, 48), (32, 32), (24, 40), (64, 16)])
@torch.no_grad()
def test_any_multiple_of_the_patch_size(size):
    """Check this also where the grid is smaller than the pretrained 4 x 4, equal to it, or not square."""
    model, images = tiny_model(), pixels(2, *size)
    outputs = model(images)
    assert outputs.anomaly_map.shape == (2, *size)
    close(outputs.anomaly_map, reference_forward(model, images)["anomaly_map"], atol=2e-5)


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one_in_any_order():
    model, images = tiny_model(), pixels(4)
    outputs = model(images)
    order = [2, 0, 3, 1]
    shuffled = model(images[order])
    for index in range(4):
        single = model(images[index : index + 1])
        for name in ("anomaly_map", "base_map", "vcp_map", "text_embeds", "image_embeds"):
            close(getattr(outputs, name)[index], getattr(single, name)[0])
            close(getattr(shuffled, name)[order.index(index)], getattr(single, name)[0])


@torch.no_grad()
def test_eager_equals_sdpa():
    model, images = tiny_model(), pixels(2)
    sdpa = model(images).anomaly_map
    assert model.clip.vision_model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.clip.text_model.config._attn_implementation == "eager"
    close(model(images).anomaly_map, sdpa, atol=1e-4)


@torch.no_grad()
def test_every_part_matters():
    images = pixels(2)
    full = tiny_model()
    reference = full(images).anomaly_map
    for fields in (
        {"use_pre_vcp": False},
        {"use_post_vcp": False},
        {"num_deep_prompt_tokens": 0},
        {"deep_prompt_position": "end"},
        {"fusion_weight": 0.0},
        {"feature_layers": [1, 2, 3, 4]},
    ):
        changed = tiny_model(**fields)
        changed.load_state_dict(full.state_dict(), strict=False)
        difference = (changed(images).anomaly_map - reference).abs().max()
        assert (difference < 1e-6) if fields == {"feature_layers": [1, 2, 3, 4]} else (difference > 1e-4), fields


@torch.no_grad()
def test_outputs_are_probabilities_and_fused_as_told():
    model = tiny_model(fusion_weight=0.3)
    outputs = model(pixels(2), output_layer_maps=True, output_attentions=True)
    close(outputs.anomaly_map, 0.7 * outputs.base_map + 0.3 * outputs.vcp_map, atol=1e-6)
    close(outputs.base_layer_maps.mean(dim=1), outputs.base_map, atol=1e-6)
    assert outputs.anomaly_map.min() >= 0 and outputs.anomaly_map.max() <= 1
    assert len(outputs.attentions) == 4 and outputs.attentions[0].shape == (2, 8, 2, 36)
    close(outputs.text_embeds.norm(dim=-1), torch.ones(2, 2))

    plain = model(pixels(2))
    assert plain.loss is None and plain.base_layer_maps is None and plain.attentions is None
    assert isinstance(model(pixels(2), return_dict=False), tuple)


@torch.no_grad()
def test_images_can_be_prompted_with_anothers_global_feature():
    """Check how tiles are prompted with their whole image."""
    model, tiles = tiny_model(), pixels(3)
    _, whole = model.encode_image(pixels(1))
    shared = model(tiles, image_embeds=whole)
    repeated = model(tiles, image_embeds=whole.expand(3, -1))
    close(shared.anomaly_map, repeated.anomaly_map)
    assert torch.equal(shared.text_embeds[0], shared.text_embeds[2])
    assert (shared.anomaly_map - model(tiles).anomaly_map).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"\(2, 32\), expected \(3 or 1, 32\)"):
        model(tiles, image_embeds=whole.expand(2, -1))


# --- prompts ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_prompts_for_one_call_equal_prompts_that_were_set():
    model, images, tokenizer = tiny_model(), pixels(2), tiny_tokenizer()
    before = model(images).anomaly_map
    normal, abnormal = ["a perfect {}", "a fine {} here"], ["a flawed {}", "bad {}"]
    rows = tokenize_prompts(normal, tokenizer, 514) + tokenize_prompts(abnormal, tokenizer, 514)
    # padded with the end token, as transformers' tokenizers do, and with 0, as OpenAI's does
    for padding in (513, 0):
        padded = torch.tensor([ids + [padding] * (40 - len(ids)) for ids in rows]).view(2, 2, 40)
        once = model(images, prompt_input_ids=padded).anomaly_map
        close(model(images).anomaly_map, before)
        changed = copy.deepcopy(model)
        changed.set_prompts(normal, abnormal, tokenizer)
        close(changed(images).anomaly_map, once)
    assert (once - before).abs().max() > 1e-4
    assert changed.config.normal_prompts == normal and changed.config.normal_prompt_input_ids == rows[:2]


def test_bad_prompts_change_nothing():
    model = tiny_model()
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=r"2 entries, the text tower has vocab_size=514"):
        model.set_prompts(["good {}"], ["bad {}"], CLIPTokenizer())
    for normal, abnormal, message in (
        (["good"], ["bad {}"], "exactly one"),
        (["good {}"], ["bad {}", "broken {}"], "'normal_prompts': 1"),
        (["good " * 30 + "{}"], ["bad {}"], "max_position_embeddings=77"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_prompts(normal, abnormal, tiny_tokenizer())
        assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(4, 7, dtype=torch.long), r"\(4, 7\), expected \(2, templates, length\)"),
        (torch.full((2, 1, 7), 514), "end token"),
        (torch.tensor([[[512, 5, 513, 514]], [[512, 514, 513, 0]]]), "slot"),
    ],
)
def test_bad_prompt_ids_are_explained(ids, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(pixels(1), prompt_input_ids=ids)


# --- training ----------------------------------------------------------------------------------------------------

LEARNED = (
    "pre_vcp.",
    "deep_prompts.",
    "prompt_norm.",
    "feature_projections.",
    "base_logit_scale",
    "vcp_logit_scale",
    "post_vcp.",
)


def test_only_the_named_parts_learn_and_clip_stays_bit_identical():
    model = tiny_model().train()
    assert model.training and model.post_vcp.training and model.deep_prompts.dropout.training
    assert not any(module.training for module in model.clip.modules())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    labels = torch.zeros(2, 48, 48, dtype=torch.long)
    labels[:, 10:30, 10:30] = 1
    model(pixels(2), labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        learned = name.startswith(LEARNED)
        assert parameter.requires_grad == learned == (parameter.grad is not None), name
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(LEARNED), name


def test_the_loss_falls_and_the_defect_is_found():
    model = tiny_model().train()
    images = pixels(4)
    labels = torch.zeros(4, 48, 48)
    for index in range(4):
        top = 8 * index
        images[index, :, top : top + 16, 8:24] += 4
        labels[index, top : top + 16, 8:24] = 1
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    first = None
    for _ in range(40):
        loss = model(images, labels=labels).loss
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    maps = model.eval()(images).anomaly_map
    assert maps[labels > 0].mean() > 0.6 > 0.3 > maps[labels == 0].mean()


@pytest.mark.parametrize("fields", [{}, {"use_pre_vcp": False}], ids=["paper", "no Pre-VCP"])
def test_gradient_checkpointing_gives_the_same_gradients(fields):
    model = tiny_model(deep_prompt_dropout=0.0, **fields).train()
    images, labels = pixels(2), torch.zeros(2, 48, 48)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        calls = []
        hook = model.clip.text_model.encoder.layers[0].register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        model.zero_grad()
        model(images, labels=labels).loss.backward()
        hook.remove()
        # the block runs once more in the backward pass
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, atol=1e-6)


def test_one_step_under_transformers_trainer(tmp_path):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    rows = [
        {"pixel_values": image, "labels": torch.zeros(48, 48, dtype=torch.long).index_fill(0, torch.arange(9), 1)}
        for image in pixels(4)
    ]
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, max_steps=1, learning_rate=1e-2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(LEARNED) for name in changed)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 50, 48), r"\(2, 50, 48\), expected \(2, 48, 48\)"),
        (torch.zeros(1, 48, 48), r"\(1, 48, 48\), expected \(2, 48, 48\)"),
        (torch.full((2, 48, 48), 255, dtype=torch.uint8), "to 255"),
        (torch.full((2, 48, 48), -1.0), "from -1.0"),
    ],
)
def test_bad_labels_are_explained(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(pixels(2), labels=labels)


@pytest.mark.parametrize("shape", [(2, 3, 50, 48), (3, 48, 48), (1, 1, 48, 48), (1, 3, 0, 48), (0, 3, 48, 48)])
def test_bad_pixel_values_are_explained(shape):
    with pytest.raises(ValueError, match="pixel_values"):
        tiny_model()(torch.zeros(shape))


# --- number formats ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_half_precision_is_close_and_its_maps_are_float32():
    model, images = tiny_model(), pixels(2)
    exact = model(images).anomaly_map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(images).anomaly_map
    pure = copy.deepcopy(model).to(torch.bfloat16)(images).anomaly_map
    for maps in (autocast, pure):
        assert maps.dtype == torch.float32
        assert (maps - exact).abs().mean() < 0.03


# --- starting from CLIP ---------------------------------------------------------------------------------------------


def test_from_clip_takes_the_backbone_as_it_is(tmp_path):
    clip = tiny_clip()
    clip.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = VCPCLIPModel.from_clip(tmp_path, image_size=48, num_category_tokens=3)
    for name, value in clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], value), name
    config = model.config
    assert config.backbone_name_or_path == str(tmp_path) and config.num_category_tokens == 3
    assert config.vision_config.hidden_act == clip.config.vision_config.hidden_act == "quick_gelu"
    # the tokenizer beside the backbone gave the ids
    assert config.normal_prompt_input_ids == tiny_config().normal_prompt_input_ids
    assert not model.training and not any(p.requires_grad for p in model.clip.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())

    other = VCPCLIPModel.from_clip(
        clip,
        tokenizer=tiny_tokenizer(),
        image_size=48,
        hidden_act="gelu",
        normal_prompts=["fine {}"],
        dtype="bfloat16",
    )
    assert other.config.text_config.hidden_act == other.config.vision_config.hidden_act == "gelu"
    assert other.config.normal_prompts == ["fine {}"] and other.dtype == torch.bfloat16
    assert clip.config.vision_config.hidden_act == "quick_gelu", "the given model is left alone"


def test_from_clip_with_a_whole_configuration(tmp_path):
    clip, config = tiny_clip(), tiny_config(fusion_weight=0.3, num_category_tokens=3)
    clip.save_pretrained(tmp_path)
    model = VCPCLIPModel.from_clip(tmp_path, config=config)
    assert model.config.fusion_weight == 0.3 and model.config.backbone_name_or_path == str(tmp_path)
    assert torch.equal(model.clip.text_projection.weight, clip.text_projection.weight)
    assert config.backbone_name_or_path is None, "the given configuration is left alone"
    with pytest.raises(ValueError, match=r"num_hidden_layers: 4 in the checkpoint, 5 in the backbone"):
        VCPCLIPModel.from_clip(tiny_clip(vision={"num_hidden_layers": 5}), config=config)


def test_from_clip_explains_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"):
        VCPCLIPModel.from_clip(tiny_clip(), image_size=48)
    with pytest.raises(ValueError, match="patch_size=8"):
        VCPCLIPModel.from_clip(tiny_clip(), tokenizer=tiny_tokenizer(), image_size=50)
    tiny_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_clip"):
        VCPCLIPModel.from_pretrained(tmp_path)
    ViTModel(ViTConfig(hidden_size=8, num_attention_heads=1, intermediate_size=8)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="model_type='vit', expected 'clip'"):
        VCPCLIPModel.from_clip(tmp_path / "vit")


def test_from_clip_takes_the_backbone_of_a_vcp_clip_checkpoint(tmp_path):
    trained = tiny_model()
    trained.save_pretrained(tmp_path)
    model = VCPCLIPModel.from_clip(tmp_path, tokenizer=tiny_tokenizer(), image_size=32, num_category_tokens=3)
    for name, value in trained.clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], value), name
    assert model.pre_vcp.category_embeddings.shape == (3, 32)
    assert not torch.equal(model.post_vcp.query_projection.weight, trained.post_vcp.query_projection.weight)
