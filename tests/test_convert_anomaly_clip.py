"""Conversion of the checkpoints of AnomalyCLIP's authors."""

import json

import pytest
import torch

from tests.common import FIXTURES, tiny_clip, tiny_tokenizer
from tests.methods.golden import ATTENTION, GoldenFolder
from tests.methods.golden_anomalyclip import make_model
from tests.processes import run_program
from vcp_clip_hf.convert_anomaly_clip import convert_anomaly_clip
from vcp_clip_hf.methods import AnomalyCLIPModel


NUM_CONTEXT, NUM_DEEP, LENGTH, WIDTH = 5, 2, 77, 32
# Size in the authors' file -> that of the tiny backbone
SIZES = {768: WIDTH, 12: NUM_CONTEXT, 4: NUM_DEEP, 64: LENGTH - 1 - NUM_CONTEXT}


@pytest.fixture(scope="module")
def clip():
    """A backbone with OpenAI's vocabulary and eight text blocks less than it."""
    torch.manual_seed(0)
    text = {"vocab_size": 49408, "num_hidden_layers": 9, "bos_token_id": 49406, "eos_token_id": 49407}
    return tiny_clip(text=text)


@pytest.fixture
def content(clip):
    """A file in the official layout, with small sizes and the embeddings of the backbone."""
    layout = json.loads((FIXTURES / "official_checkpoint_layout.json").read_text())["anomalyclip"]
    words = clip.text_model.embeddings.token_embedding.weight.detach()
    learner = {}
    for name, (shape, dtype) in layout["top_level"]["prompt_learner"].items():
        learner[name] = torch.randn([SIZES.get(size, size) for size in shape]).to(getattr(torch, dtype[6:]))
    for state in ("pos", "neg"):
        ids = layout[f"{state}_ids"]
        ids = [ids[0], *ids[1 : 1 + NUM_CONTEXT], *ids[13:]]
        ids = torch.tensor(ids + [0] * (LENGTH - len(ids)), dtype=torch.int32)
        learner[f"tokenized_prompts_{state}"] = ids.view(1, 1, -1)
        learner[f"token_prefix_{state}"] = words[ids[:1].long()].view(1, 1, 1, -1)
        learner[f"token_suffix_{state}"] = words[ids[1 + NUM_CONTEXT :].long()][None, None]
    return {"prompt_learner": learner}


def convert(content, clip, tmp_path, **kwargs):
    torch.save(content, tmp_path / "epoch_15.pth")
    return convert_anomaly_clip(tmp_path / "epoch_15.pth", clip, **{"image_size": 48, **kwargs})


def test_every_tensor_of_the_official_layout_has_its_place(content, clip, tmp_path):
    model = convert(content, clip, tmp_path)
    config, learner = model.config, content["prompt_learner"]
    assert (config.num_context_tokens, config.num_deep_prompt_tokens, config.deep_prompt_depth) == (5, 2, 9)
    assert config.feature_layers == [4] and config.vision_config.hidden_act == "quick_gelu"
    assert config.normal_prompt_ids == [49406, 14115, 269, 49407]
    assert config.abnormal_prompt_ids == [49406, 13568, 14115, 269, 49407]
    assert torch.equal(model.prompts.normal_context, learner["ctx_pos"][0, 0])
    assert torch.equal(model.prompts.abnormal_context, learner["ctx_neg"][0, 0])
    for index, tokens in enumerate(model.prompts.deep_prompts):
        assert torch.equal(tokens, learner[f"compound_prompts_text.{index}"])
    assert len(model.prompts.deep_prompts) == 8 and not model.training


def test_the_authors_file_gives_the_authors_maps(tmp_path):
    """The learned tensors of the golden folder, stored as the authors store them."""
    folder = GoldenFolder(FIXTURES / "rivals" / "anomalyclip")
    config = folder.config
    learned = dict(folder.tensors("learned.safetensors"))
    learned["compound_prompt_projections.0.weight"] = torch.zeros(896, config["text"]["hidden_size"])
    torch.save({"prompt_learner": learned}, tmp_path / "epoch_15.pth")
    model = convert_anomaly_clip(
        tmp_path / "epoch_15.pth",
        folder.clip,
        config["image_size"],
        config["feature_layers"],
        dpam_layer=config["dpam_layer"],
        attn_implementation=ATTENTION,
    )
    with torch.no_grad():
        expected, got = (each(folder.expected["pixel_values"]) for each in (make_model(folder), model))
    assert torch.equal(got.anomaly_map, expected.anomaly_map) and torch.equal(got.image_scores, expected.image_scores)


def test_projections_without_effect_may_be_missing_or_have_any_size(content, clip, tmp_path):
    full = convert(content, clip, tmp_path).state_dict()
    learner = content["prompt_learner"]
    for name in list(learner):
        if "projections.3" in name:
            del learner[name]
    learner["compound_prompt_projections.0.weight"] = torch.zeros(3, 3)
    for name, value in convert(content, clip, tmp_path).state_dict().items():
        assert torch.equal(value, full[name]), name


def test_every_problem_is_listed_at_once(content, clip, tmp_path):
    learner = content["prompt_learner"]
    del learner["ctx_neg"], learner["compound_prompts_text.3"]
    learner["ctx_pos"] = learner["ctx_pos"][..., :8]
    learner["compound_prompts_text.5"][0, 0] = torch.nan
    learner["meta_net.weight"] = torch.zeros(2)
    learner["token_prefix_pos"] = "words"
    with pytest.raises(ValueError, match="not an official AnomalyCLIP checkpoint") as error:
        convert(content, clip, tmp_path)
    for words in (
        "missing: prompt_learner.ctx_neg (1, 1, 5, 32)",
        "missing: prompt_learner.compound_prompts_text.3 (2, 32)",
        "wrong shape: prompt_learner.ctx_pos (1, 1, 5, 8), expected (1, 1, 5, 32)",
        "not finite: prompt_learner.compound_prompts_text.5",
        "unexpected: prompt_learner.compound_prompts_text.7",
        "unexpected: prompt_learner.meta_net.weight",
        "not a tensor: prompt_learner.token_prefix_pos is a str",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("part", ["token_prefix_neg", "token_suffix_pos"])
def test_embeddings_of_another_backbone_are_refused(content, clip, tmp_path, part):
    content["prompt_learner"][part][0, 0, 0, 3] += 0.1
    with pytest.raises(ValueError, match=rf"{part} differs by 0\.1 from the backbone's word embeddings"):
        convert(content, clip, tmp_path)


def test_a_backbone_with_other_words_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"ids from 0 to 49407, but the backbone's vocabulary has 514 entries"):
        convert(content, tiny_clip(text={"num_hidden_layers": 9}), tmp_path, tokenizer=tiny_tokenizer())


def test_other_prompts_need_their_words(content, clip, tmp_path):
    learner = content["prompt_learner"]
    words = clip.text_model.embeddings.token_embedding.weight.detach()
    learner["tokenized_prompts_neg"][0, 0, 1 + NUM_CONTEXT] = 886
    learner["token_suffix_neg"][0, 0, 0] = words[886]
    with pytest.raises(ValueError, match=r"Pass the words of the file as abnormal_prompt"):
        convert(content, clip, tmp_path)
    model = convert(content, clip, tmp_path, abnormal_prompt="good object.")
    assert model.config.abnormal_prompt_ids == [49406, 886, 14115, 269, 49407]


def test_a_prompt_without_an_end_is_refused(content, clip, tmp_path):
    content["prompt_learner"]["tokenized_prompts_pos"][0, 0, 1 + NUM_CONTEXT :] = 0
    with pytest.raises(ValueError, match="tokenized_prompts_pos has no end token"):
        convert(content, clip, tmp_path)


def test_the_command_writes_a_folder_that_loads(content, clip, tmp_path):
    torch.save(content, tmp_path / "epoch_15.pth")
    clip.save_pretrained(tmp_path / "clip")
    command = ["-m", "vcp_clip_cli", "convert", "--method", "anomaly_clip", "--image-size", "48"]
    options = ["--checkpoint", tmp_path / "epoch_15.pth", "--backbone", tmp_path / "clip"]
    options += ["--output", tmp_path / "out"]
    done = run_program(*command, *options)
    assert done.returncode == 0, done.stderr
    assert f"{2 * 5 * 32 + 8 * 2 * 32:,} learned parameters" in done.stdout
    model = AnomalyCLIPModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.prompts.normal_context, content["prompt_learner"]["ctx_pos"][0, 0])
    expected = convert(content, clip, tmp_path)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(model(images).anomaly_map, expected(images).anomaly_map)
