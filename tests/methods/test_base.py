"""The common base of all methods: product names, kept embeddings, checks, saving and loading."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from tests.common import pixels, tiny_clip, tiny_tokenizer
from tests.methods.common import ALONE, LOADED, tiny_method
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.methods import METHODS, AprilGANModel


class Counted(AprilGANModel):
    """Counts the prompts that it embeds."""

    embedded = 0

    def _encode_block(self, rows):
        self.embedded += len(rows)
        return super()._encode_block(rows)


@pytest.fixture
def model():
    counted = tiny_method()
    counted.__class__ = Counted
    return counted


NUM_PROMPTS = 6  # of one product of `tiny_method`


# --- product names --------------------------------------------------------------------------------------------------


def test_one_name_serves_for_all_images():
    model, images = tiny_method(), pixels(3)
    with torch.no_grad():
        one, each = model(images, "nut"), model(images, ["nut"] * 3)
        other, default, named = model(images, "bolt"), model(images), model(images, "object")
    assert torch.equal(one.anomaly_map, each.anomaly_map)
    assert not torch.allclose(one.anomaly_map, other.anomaly_map)
    assert torch.equal(default.image_scores, named.image_scores)


def test_each_image_has_its_own_product():
    model, images = tiny_method(), pixels(2)
    with torch.no_grad():
        both = model(images, ["nut", "bolt"])
        alone = [model(images[index : index + 1], name) for index, name in enumerate(("nut", "bolt"))]
    assert torch.allclose(both.anomaly_map, torch.cat([each.anomaly_map for each in alone]), atol=1e-5)
    assert torch.allclose(both.image_scores, torch.cat([each.image_scores for each in alone]), atol=1e-5)


@pytest.mark.parametrize(
    ("names", "words"), [(["nut"], "1 product_names came with 2"), (["nut", " "], "' '"), (["nut", None], "None")]
)
def test_wrong_names_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        tiny_method()(pixels(2), names)


def test_a_name_that_does_not_fit_the_text_tower_is_refused():
    with pytest.raises(ValueError, match="more than max_position_embeddings=77"):
        tiny_method()(pixels(1), "n" * 80)


def test_special_tokens_in_a_name_are_refused():
    with pytest.raises(ValueError, match="cannot spell"):
        tiny_method()(pixels(1), "<|endoftext|>")


# --- embeddings that are kept ---------------------------------------------------------------------------------------


def test_a_product_is_embedded_once(model):
    images = pixels(4)
    model(images, ["nut", "bolt", "nut", "nut"])
    assert model.embedded == 2 * NUM_PROMPTS
    with torch.inference_mode():
        model(images, "bolt")
    model.train()(images, "nut", labels=torch.zeros(4, 48, 48)).loss.backward()
    assert model.embedded == 2 * NUM_PROMPTS


def changed_weights(model):
    with torch.no_grad():
        model.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)


def changed_behind_the_version_counter(model):
    model.clip.text_projection.weight.data = model.clip.text_projection.weight.data * 1.5


def loaded_weights(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def other_prompts(model):
    model.config.templates = ["one {}."]


def other_dtype(model):
    model.half().float()


@pytest.mark.parametrize(
    "change", [changed_weights, changed_behind_the_version_counter, loaded_weights, other_prompts, other_dtype]
)
def test_kept_embeddings_are_never_stale(model, change):
    images = pixels(1)
    with torch.no_grad():
        model(images, "nut")
        change(model)
        fresh = copy.deepcopy(model)
        fresh._forget_texts()
        assert torch.equal(model(images, "nut").text_embeds, fresh(images, "nut").text_embeds)


def test_another_tokenizer_is_used_at_once(model):
    model.text_embeds(["nut"])
    model.tokenizer = tiny_tokenizer()
    model.text_embeds(["nut"])
    assert model.embedded == 2 * NUM_PROMPTS


def test_a_trained_text_tower_gets_gradients(model):
    model.clip.text_model.requires_grad_(True)
    model(pixels(1), "nut", labels=torch.ones(1, 48, 48)).loss.backward()
    assert model.clip.text_model.final_layer_norm.weight.grad.abs().sum() > 0
    assert not model._texts


def test_prompts_are_embedded_in_blocks_of_any_length(model, monkeypatch):
    sentences = ["a", "a much longer one", "b c", "d"]
    with torch.no_grad():
        at_once = model.encode_sentences(sentences)
        monkeypatch.setattr("vcp_clip_hf.methods.base._BLOCK", 2)
        assert torch.allclose(model.encode_sentences(sentences), at_once, atol=1e-4)
        assert torch.allclose(model.encode_sentences(sentences[2:3])[0], at_once[2], atol=1e-4)


def test_few_products_are_kept(model, monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.methods.base._MAX_PRODUCTS", 2)
    with torch.no_grad():
        embeds = model.text_embeds(["a", "b", "c"])
        assert len(model._texts) == 2
        assert torch.equal(model.text_embeds(["a", "b", "c"]), embeds)


# --- the tokenizer --------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_the_error_says_what_to_do():
    model = AprilGANModel.from_clip(tiny_clip(), image_size=48)
    with pytest.raises(ValueError, match=r"Set `model\.tokenizer`"):
        model(pixels(1), "nut")


def test_a_tokenizer_of_another_vocabulary_is_refused():
    model = AprilGANModel.from_clip(tiny_clip(text={"vocab_size": 600}), image_size=48)
    with pytest.raises(ValueError, match="514 entries"):
        model.tokenizer = tiny_tokenizer()


def test_the_tokenizer_is_found_at_the_backbone(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = AprilGANModel.from_clip(tmp_path, image_size=48)
    assert len(model.tokenizer) == 514


# --- inputs and outputs ---------------------------------------------------------------------------------------------


def test_labels_and_arguments_are_checked():
    model = tiny_method()
    with pytest.raises(ValueError, match="labels has shape"):
        model(pixels(1), labels=torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="from 0 to 255"):
        model(pixels(1), labels=torch.full((1, 48, 48), 255).tril())
    with pytest.raises(TypeError, match="did you mean 'product_names'"):
        model(pixels(1), product_name="nut")
    with pytest.raises(ValueError, match="multiples of patch_size"):
        model(pixels(1, 50, 48))


def test_requested_outputs_only():
    model = tiny_method()
    with torch.no_grad():
        plain = model(pixels(1))
        full = model(pixels(1), output_layer_maps=True, output_hidden_states=True)
        some = model(pixels(1), output_hidden_states=[0, 3])
        as_tuple = model(pixels(1), return_dict=False)
    assert plain.layer_maps is None and plain.hidden_states is None and plain.loss is None
    assert full.layer_maps.shape == (1, 4, 48, 48) and len(full.hidden_states) == 5
    assert [each is None for each in some.hidden_states] == [False, True, True, False, True]
    assert isinstance(as_tuple, tuple)


def test_rectangular_images_of_other_sizes():
    with torch.no_grad():
        outputs = tiny_method()(pixels(1, 32, 64))
    assert outputs.anomaly_map.shape == (1, 32, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_and_scores_are_float32_in_any_dtype(dtype):
    with torch.no_grad():
        outputs = tiny_method().to(dtype)(pixels(1).to(dtype), "nut")
    for each in (outputs.anomaly_map, outputs.image_scores):
        assert each.dtype == torch.float32 and each.min() >= 0 and each.max() <= 1


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", LOADED)
def test_every_method_comes_back_equal_through_the_auto_classes(model_type, tmp_path):
    model = tiny_method(model_type)
    model.save_pretrained(tmp_path)
    VCPCLIPImageProcessor.for_model(model.config).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    state, former = again.state_dict(), model.state_dict()
    assert state.keys() == former.keys() and all(torch.equal(state[name], former[name]) for name in state)
    assert len(again.tokenizer) == len(model.tokenizer)
    assert not any(parameter.requires_grad for parameter in again.clip.parameters())
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), VCPCLIPImageProcessor)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), VCPCLIPImageProcessor)
    images = pixels(2)
    with torch.no_grad():
        ours, theirs = model(images, "nut"), again(images, "nut")
    assert torch.equal(ours.anomaly_map, theirs.anomaly_map)
    assert torch.equal(ours.image_scores, theirs.image_scores)


@pytest.mark.parametrize("model_type", ALONE)
def test_every_method_gives_maps_and_scores_in_range(model_type):
    images = pixels(2)
    model = tiny_method(model_type)
    with torch.no_grad():
        outputs, alone = model(images, ["nut", "bolt"]), model(images[1:], "bolt")
    assert outputs.anomaly_map.shape == (2, 48, 48) and outputs.image_scores.shape == (2,)
    for each in (outputs.anomaly_map, outputs.image_scores):
        assert each.dtype == torch.float32 and each.min() >= 0 and each.max() <= 1
    assert torch.allclose(outputs.anomaly_map[1:], alone.anomaly_map, atol=1e-5)
    assert torch.allclose(outputs.image_scores[1:], alone.image_scores, atol=1e-5)


@pytest.mark.parametrize("model_type", METHODS)
def test_methods_without_a_few_shot_mode_refuse_references(model_type):
    model = tiny_method(model_type)
    if not model.supports_references:
        with pytest.raises(ValueError, match="no few-shot mode"):
            model(pixels(1), references={})
        with pytest.raises(ValueError, match="no few-shot mode"):
            model.reference_tokens(pixels(1))
        with pytest.raises(ValueError, match="no few-shot mode"):
            model.reference_banks()


def test_the_learned_part_alone_is_saved_and_loaded(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    model = AprilGANModel.from_clip(tmp_path / "clip", image_size=48)
    model.save_pretrained(tmp_path / "learned", adapter_only=True)
    again = AutoModel.from_pretrained(tmp_path / "learned")
    images = pixels(1)
    with torch.no_grad():
        assert torch.equal(model(images, "nut").anomaly_map, again(images, "nut").anomaly_map)
    assert (tmp_path / "learned" / "model.safetensors").stat().st_size < 100_000


def test_a_method_without_a_learned_part_is_saved_with_its_clip(tmp_path):
    model = tiny_method("winclip")
    model.config.backbone_name_or_path = "owner/clip"
    with pytest.raises(ValueError, match="would save nothing: WinCLIPModel"):
        model.save_pretrained(tmp_path, adapter_only=True)


def test_references_without_a_bank_are_refused():
    with pytest.raises(ValueError, match="layer_2, layer_3, layer_4 is missing"):
        tiny_method()(pixels(1), references={"layer_1": torch.eye(64)})


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    tiny_method().save_pretrained(tmp_path)

    class Other(AprilGANModel):
        config_class = type("OtherConfig", (AprilGANModel.config_class,), {"model_type": "other"})

    with pytest.raises(ValueError, match="is a model of type 'april_gan', expected 'other'"):
        Other.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", [name for name, model in METHODS.items() if model.works_on_any_clip])
def test_the_learned_part_is_known_by_its_name(model_type):
    model = tiny_method(model_type)
    learned = {name.split(".")[0] for name, _ in model.named_parameters() if "." in name} - {"clip"}
    assert learned <= set(model._learned_modules)


def test_a_method_stands_for_its_clip(tmp_path):
    former = tiny_method()
    former.save_pretrained(tmp_path)
    model = AprilGANModel.from_clip(tmp_path, image_size=64)
    state = model.clip.state_dict()
    assert all(torch.equal(state[name], value) for name, value in former.clip.state_dict().items())
    assert len(model.tokenizer) == 514


@pytest.mark.parametrize("model_type", LOADED)
def test_maps_and_scores_are_float32_inside_autocast(model_type):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = tiny_method(model_type)(pixels(1))
    assert outputs.anomaly_map.dtype == outputs.image_scores.dtype == torch.float32
