"""Write `hub_configs/`: one folder for each setting of the paper and each ablation.

python -m examples.research.write_hub_configs

Every folder has the `config.json` of a checkpoint (loadable with `VCPCLIPConfig.from_pretrained`), its
`preprocessor_config.json` and a `train.yaml` (for `examples/train.py --config`). What differs from the paper's main
setting is written here once; the folders are made from it, and a test holds them against it.
"""

from pathlib import Path

import yaml

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor
from vcp_clip_hf.data.synthetic_defects import possible_defects, select_products
from vcp_clip_hf.prompts import tokenize_prompts

from . import pretrain_clip


ROOT = Path(__file__).parents[2] / "hub_configs"

# Ids in the vocabulary of OpenAI's CLIP; 49408 is the category slot
_START, _SLOT, _END = 49406, 49408, 49407
_WORDS = {
    "good": 886,
    "damaged": 13568,
    "perfect": 1878,
    "flawed": 35136,
    "normal": 5967,
    "abnormal": 40934,
    "flawless": 15531,
    "imperfect": 46034,
    "pristine": 30618,
    "broken": 5107,
}
_PAIRS = [
    ("perfect", "flawed"),
    ("normal", "abnormal"),
    ("flawless", "imperfect"),
    ("pristine", "broken"),
    ("good", "damaged"),
]
_TEMPLATES = {
    "a-photo-of-a": ("a photo of a {state} {{}}", lambda word: [320, 1125, 539, 320, word]),
    "this-is-a": ("this is a {state} photo of {{}}", lambda word: [589, 533, 320, word, 1125, 539]),
}

_BACKBONES = {
    "vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "vit-large-patch14-224": "openai/clip-vit-large-patch14",
    "vit-base-patch16-224": "openai/clip-vit-base-patch16",
}
_TOWERS = {
    "vit-large-patch14-224": {
        "vision_config": {**VCPCLIPConfig().vision_config.to_dict(), "image_size": 224},
    },
    "vit-base-patch16-224": {
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "projection_dim": 512,
            "hidden_act": "gelu",
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "image_size": 224,
            "projection_dim": 512,
            "hidden_act": "gelu",
        },
        "projection_dim": 512,
        # 518 is no multiple of 16; the paper does not say what it took
        "image_size": 512,
    },
}
# The auxiliary dataset of a training run, and what is evaluated with it
_VISA = {
    "dataset": "visa",
    "evaluation_targets": ["mvtec_ad", "bsd", "gc10_det", "ksdd2", "msd", "road", "rsdd", "btad", "dagm"],
}
_MVTEC = {
    "dataset": "mvtec_ad",
    "evaluation_targets": ["visa"],
    "learning_rate": 2e-5,
    "mosaic_probability": 0.2,
}


def prompts(template: str, normal: str, abnormal: str) -> dict:
    """Strings and ids of one pair of state words in one template."""
    text, ids = _TEMPLATES[template]
    fields = {}
    for state, word in (("normal", normal), ("abnormal", abnormal)):
        fields[f"{state}_prompts"] = [text.format(state=word)]
        row = [_START, *ids(_WORDS[word])]
        fields[f"{state}_prompt_input_ids"] = [[*row, _SLOT, _END]]
    return fields


def settings() -> dict[str, tuple[dict, dict, dict]]:
    """Folder -> what differs in the configuration, in the image processor, and in the training."""
    main = "vcp-clip-vit-large-patch14-336"
    found = {
        f"{main}-visa": ({}, {}, _VISA),
        f"{main}-mvtec-ad": ({}, {}, _MVTEC),
        "vcp-clip-vit-large-patch14-224": (_TOWERS["vit-large-patch14-224"], {}, _VISA),
        "vcp-clip-vit-base-patch16-224": (_TOWERS["vit-base-patch16-224"], {}, _VISA),
        "vcp-clip-baseline": ({"use_pre_vcp": False, "use_post_vcp": False}, {}, _VISA),
        "ablation-without-dtp": ({"num_deep_prompt_tokens": 0}, {}, _VISA),
        "ablation-without-pre-vcp": ({"use_pre_vcp": False}, {}, _VISA),
        "ablation-without-post-vcp": ({"use_post_vcp": False}, {}, _VISA),
        "ablation-dtp-end": ({"deep_prompt_position": "end"}, {}, _VISA),
    }
    for layers in ([6], [12], [18], [24], [6, 12], [6, 12, 18]):
        name = "ablation-layers-" + "-".join(map(str, layers))
        found[name] = ({"feature_layers": layers}, {}, _VISA)
    for template in _TEMPLATES:
        for normal, abnormal in _PAIRS:
            if (template, normal) != ("a-photo-of-a", "good"):  # the main setting
                name = f"ablation-prompt-{template}-{normal}-{abnormal}"
                found[name] = (prompts(template, normal, abnormal), {}, _VISA)
    # the paper's table gives these sizes as a picture; 518 is the main setting
    for size in (224, 336, 700, 798):
        found[f"ablation-resolution-{size}"] = ({"image_size": size}, {"smoothing_sigma": 8 * size / 518}, _VISA)
    for r in (1, 3, 4):
        found[f"ablation-category-tokens-{r}"] = ({"num_category_tokens": r}, {}, _VISA)
    for n in (2, 3, 4):
        found[f"ablation-deep-prompt-tokens-{n}"] = ({"num_deep_prompt_tokens": n}, {}, _VISA)
    for heads in (1, 2, 4, 16):
        found[f"ablation-heads-{heads}"] = ({"post_vcp_num_heads": heads}, {}, _VISA)
    for weight in (0.0, 0.25, 0.5, 1.0):
        found[f"ablation-fusion-weight-{weight}"] = ({"fusion_weight": weight}, {}, _VISA)
    return found


# Families that look like the products of the real data sets on which the embedded checkpoint is compared: it is not
# trained on them, so that what is measured there are kinds it has never seen
KEPT_OUT = (
    "ball_screw",
    "carbon_block",
    "commutator",
    "ferrite_tile",
    "nut_kernel",
    "radial_pattern",
    "rolled_steel",
    "transistor",
)


def embedded_products() -> list[str]:
    """The families that the embedded checkpoint is trained on."""
    return sorted(name for name in set(select_products("seen")) - set(KEPT_OUT) if possible_defects(name))


def embedded_config() -> VCPCLIPConfig:
    """The embedded checkpoint: VCP-CLIP on the CLIP of `pretrain_clip.py`."""
    options = pretrain_clip.parse(["--output_dir", ""])
    tokenizer = pretrain_clip.load_tokenizer(options)
    clip = pretrain_clip.make_config(tokenizer, options)
    states = {"normal": ["a photo of a good {}"], "abnormal": ["a photo of a damaged {}"]}
    fields = {}
    for state, prompts in states.items():
        fields[f"{state}_prompts"] = prompts
        fields[f"{state}_prompt_input_ids"] = tokenize_prompts(prompts, tokenizer, len(tokenizer))
    return VCPCLIPConfig(
        text_config=clip.text_config.to_dict(),
        vision_config=clip.vision_config.to_dict(),
        projection_dim=clip.projection_dim,
        image_size=224,
        category_token_id=len(tokenizer),
        **fields,
    )


_EMBEDDED_RUN = {
    "output_dir": "runs/vcp-clip-tiny",
    "dataset": "synthetic",
    "split": "train",
    "dataset_options": {"num_images": 6000, "size": 256},
    "products": embedded_products(),
    "validation_products": 0,
    # pictures enough, so that the frozen tower needs to see each only once
    "augmentation": False,
    "image_feature_dir": "runs/vcp-clip-tiny/image_features",
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "mixed_precision": "bf16",
}


def write(root: Path = ROOT) -> None:
    """All folders."""
    for name, (fields, processing, training) in settings().items():
        backbone = next((key for key in _BACKBONES if name.endswith(key)), "vit-large-patch14-336")
        config = VCPCLIPConfig(**{"backbone_name_or_path": _BACKBONES[backbone], **fields})
        run = {"output_dir": f"runs/{name}", **training, "validation_products": 2}
        _write_folder(root / name, config, processing, run)
    config = embedded_config()
    _write_folder(root / "vcp-clip-tiny", config, {"smoothing_sigma": 3.5}, _EMBEDDED_RUN)


def _write_folder(folder: Path, config: VCPCLIPConfig, processing: dict, run: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(config, **processing).save_pretrained(folder)
    (folder / "train.yaml").write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    write()
