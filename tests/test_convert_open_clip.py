"""open_clip checkpoints as CLIPModel, compared with a plain reading of open_clip's model on the same tensors."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel

from tests.common import tiny_tokenizer
from tests.processes import run_program
from vcp_clip_hf.convert_open_clip import convert_open_clip, main


WIDTH, TEXT_WIDTH, JOINT, PATCH, SIDE, VOCABULARY = 128, 64, 24, 4, 3, 514


def tower(prefix, width, blocks):
    tensors = {}
    for index in range(blocks):
        sizes = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (2 * width, width),
            "mlp.c_fc.bias": (2 * width,),
            "mlp.c_proj.weight": (width, 2 * width),
            "mlp.c_proj.bias": (width,),
        }
        tensors.update({f"{prefix}transformer.resblocks.{index}.{name}": size for name, size in sizes.items()})
    return tensors


@pytest.fixture
def tensors():
    """A small random open_clip model with the names and shapes of ViT-B-16-plus-240."""
    torch.manual_seed(0)
    shapes = {
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + SIDE**2, WIDTH),
        "visual.ln_pre.weight": (WIDTH,),
        "visual.ln_pre.bias": (WIDTH,),
        "visual.ln_post.weight": (WIDTH,),
        "visual.ln_post.bias": (WIDTH,),
        "visual.proj": (WIDTH, JOINT),
        "token_embedding.weight": (VOCABULARY, TEXT_WIDTH),
        "positional_embedding": (16, TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
        "text_projection": (TEXT_WIDTH, JOINT),
        "logit_scale": (),
        **tower("visual.", WIDTH, 3),
        **tower("", TEXT_WIDTH, 2),
    }
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def timm(tensors):
    """The same model with timm's names of the image tower and the prefix of a separate text tower."""
    blocks = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    renamed = {}
    for name, tensor in tensors.items():
        if not name.startswith("visual."):
            renamed[name if name == "logit_scale" else f"text.{name}"] = tensor
            continue
        name = name.removeprefix("visual.")
        for theirs, ours in {
            "transformer.resblocks.": "blocks.",
            **blocks,
            "conv1": "patch_embed.proj",
            "ln_pre": "norm_pre",
            "ln_post": "norm",
        }.items():
            name = name.replace(theirs, ours)
        if name == "class_embedding":
            name, tensor = "cls_token", tensor[None, None]
        elif name == "positional_embedding":
            name, tensor = "pos_embed", tensor[None]
        if name == "proj":
            renamed["visual.head.proj.weight"] = tensor.T.contiguous()
            renamed["visual.trunk.head.bias"] = torch.zeros(JOINT)
        else:
            renamed[f"visual.trunk.{name}"] = tensor
    return renamed


def run_tower(tensors, prefix, stream, heads, mask=None):
    indices = {
        int(found[1]) for name in tensors if (found := re.match(rf"{prefix}transformer\.resblocks\.(\d+)", name))
    }
    width = stream.shape[-1]

    def layer_norm(x, name):
        return functional.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    for index in sorted(indices):
        block = f"{prefix}transformer.resblocks.{index}"
        attended, _ = functional.multi_head_attention_forward(
            *[layer_norm(stream, f"{block}.ln_1").transpose(0, 1)] * 3,
            width,
            heads,
            tensors[f"{block}.attn.in_proj_weight"],
            tensors[f"{block}.attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            tensors[f"{block}.attn.out_proj.weight"],
            tensors[f"{block}.attn.out_proj.bias"],
            need_weights=False,
            attn_mask=mask,
        )
        stream = stream + attended.transpose(0, 1)
        hidden = functional.linear(
            layer_norm(stream, f"{block}.ln_2"), tensors[f"{block}.mlp.c_fc.weight"], tensors[f"{block}.mlp.c_fc.bias"]
        )
        stream = stream + functional.linear(
            functional.gelu(hidden), tensors[f"{block}.mlp.c_proj.weight"], tensors[f"{block}.mlp.c_proj.bias"]
        )
    return stream, layer_norm


def encode_image(tensors, images, heads):
    patches = functional.conv2d(images, tensors["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    cls = tensors["visual.class_embedding"].expand(len(images), 1, -1)
    stream = torch.cat([cls, patches], dim=1) + tensors["visual.positional_embedding"]
    stream = functional.layer_norm(stream, (WIDTH,), tensors["visual.ln_pre.weight"], tensors["visual.ln_pre.bias"])
    stream, layer_norm = run_tower(tensors, "visual.", stream, heads)
    return layer_norm(stream[:, 0], "visual.ln_post") @ tensors["visual.proj"]


def encode_text(tensors, ids, heads):
    length = ids.shape[1]
    stream = tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][:length]
    mask = torch.full((length, length), -torch.inf).triu(1)
    stream, layer_norm = run_tower(tensors, "", stream, heads, mask)
    return layer_norm(stream, "ln_final")[torch.arange(len(ids)), ids.argmax(dim=1)] @ tensors["text_projection"]


def check(model, tensors, vision_heads=2, text_heads=1):
    images = torch.randn(2, 3, PATCH * SIDE, PATCH * SIDE)
    ids = torch.tensor([[512, 4, 9, 7, 513, 0], [512, 8, 513, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(
            model.get_image_features(images).pooler_output,
            encode_image(tensors, images, vision_heads),
            atol=1e-5,
            rtol=1e-5,
        )
        torch.testing.assert_close(
            model.get_text_features(ids).pooler_output, encode_text(tensors, ids, text_heads), atol=1e-5, rtol=1e-5
        )
    assert model.logit_scale == tensors["logit_scale"]


@pytest.mark.parametrize("layout", ["open_clip", "timm"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_outputs_are_those_of_a_plain_reading(tensors, tmp_path, layout, suffix):
    content = tensors if layout == "open_clip" else timm(tensors)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in content.items()}, "epoch": 31}, path)
    else:
        save_file(content, path)
    model = convert_open_clip(path)
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (WIDTH, 3, 2)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (12, 4, 256)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("gelu", 1e-5)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (TEXT_WIDTH, 2, 1)
    assert not model.training
    check(model, tensors)


def test_heads_and_activation_come_from_the_file_beside(tensors, tmp_path):
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    model_cfg = {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 4}, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    vision, text = (getattr(convert_open_clip(tmp_path).config, name) for name in ("vision_config", "text_config"))
    assert (vision.num_attention_heads, text.num_attention_heads) == (4, 4)
    assert vision.hidden_act == text.hidden_act == "quick_gelu"
    check(convert_open_clip(tmp_path, vision_heads=8, text_heads=2, hidden_act="gelu"), tensors, 8, 2)


def refuse(tensors, tmp_path, *words, **options):
    torch.save(tensors, tmp_path / "changed.pt")
    with pytest.raises(ValueError) as error:
        convert_open_clip(tmp_path / "changed.pt", **options)
    for each in words:
        assert each in str(error.value)


def test_every_problem_is_listed_at_once(tensors, tmp_path):
    del tensors["visual.ln_pre.bias"]
    tensors["visual.transformer.resblocks.1.ln_2.weight"] = torch.zeros(5)
    tensors["logit_scale"] = torch.tensor(torch.nan)
    refuse(
        tensors,
        tmp_path,
        "missing: vision_model.pre_layrnorm.bias (128,)",
        "wrong shape: vision_model.encoder.layers.1.layer_norm2.weight (5,), expected (128,)",
        "not finite: logit_scale",
    )


def test_tensors_without_a_place_are_refused(tensors, tmp_path):
    tensors["visual.transformer.resblocks.0.ls_1.gamma"] = torch.ones(WIDTH)
    tensors["logit_bias"] = torch.ones(())
    refuse(tensors, tmp_path, "visual.transformer.resblocks.0.ls_1.gamma (128,)", "logit_bias ()")


def test_a_bias_of_the_projection_is_refused_unless_it_is_zero(tensors, tmp_path):
    refuse({**timm(tensors), "visual.trunk.head.bias": torch.ones(JOINT)}, tmp_path, "visual.trunk.head.bias")


def test_two_tensors_for_one_place_are_refused(tensors, tmp_path):
    tensors["visual.trunk.head.weight"] = torch.zeros(JOINT, WIDTH)
    refuse(tensors, tmp_path, "visual.trunk.head.weight (24, 128): its place is taken by another tensor")


def test_other_files_are_refused(tensors, tmp_path):
    image_tower = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    refuse(image_tower, tmp_path, "image tower only", "open_clip_model.safetensors")
    bare = {name.removeprefix("visual.trunk."): tensor for name, tensor in timm(image_tower).items()}
    refuse(bare, tmp_path, "image tower only")
    refuse({"weight": torch.ones(2)}, tmp_path, "no place for 1 of its 1 tensors")
    refuse({"a": 1}, tmp_path, "not tensors: ['a']")
    refuse({**tensors, "visual.positional_embedding": torch.zeros(8, WIDTH)}, tmp_path, "not square")
    del tensors["visual.transformer.resblocks.1.ln_1.weight"], tensors["visual.conv1.weight"]
    refuse(tensors, tmp_path, "no tensor for vision_model.embeddings.patch_embedding.weight")


def test_heads_that_do_not_divide_the_width(tensors, tmp_path):
    refuse(tensors, tmp_path, "128 channels", "Pass vision_heads", vision_heads=3)


def test_unreadable_files(tmp_path):
    with pytest.raises(OSError, match="neither open_clip_model"):
        convert_open_clip(tmp_path)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        convert_open_clip(tmp_path / "empty.safetensors")
    torch.save({"code": re.compile("a")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="refused because loading them can run code"):
        convert_open_clip(tmp_path / "code.pt")


def test_the_command_writes_a_clip_that_transformers_loads(tensors, tmp_path):
    save_file(tensors, tmp_path / "weights.safetensors")
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    command = ["-m", "vcp_clip_hf.convert_vcp_clip_to_hf", "--method", "open_clip", "--checkpoint"]
    arguments = [tmp_path / "weights.safetensors", "--output", tmp_path / "clip", "--tokenizer", tmp_path / "words"]
    done = run_program(*command, *arguments)
    assert done.returncode == 0, done.stderr
    assert "3 blocks, 128 channels, 2 heads, 12 pixels" in done.stdout and "tokenizer included" in done.stdout
    check(CLIPModel.from_pretrained(tmp_path / "clip"), tensors)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "clip")) == VOCABULARY


def test_errors_of_the_command_are_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint", tmp_path, "--output", tmp_path / "out"])
    assert stop.value.code == 1 and capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()
