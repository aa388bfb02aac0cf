"""Write the folders of `hub_configs/`: one for each named checkpoint.

    python -m examples.research.write_hub_configs

Every folder has the `config.json` of a checkpoint (loadable with `VCPCLIPConfig.from_pretrained`), its
`preprocessor_config.json`, and a `train.yaml` (for `examples/train.py --config`). This file states what differs from
the paper's main setting; a test compares the folders with it. The ablations stand in `hub_configs/ablations.yaml`.
"""

from pathlib import Path

import yaml

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor
from vcp_clip_hf.configuration_frozen_clip import FrozenCLIPConfig
from vcp_clip_hf.generator import possible_defects, select_products
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.prompts import tokenize_prompts

from . import pretrain_clip
from .captioned_views import load_tokenizer


__all__ = ["KEPT_OUT", "ROOT", "embedded_config", "embedded_products", "method_settings", "settings", "write"]

ROOT = Path(__file__).parents[2] / "hub_configs"

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
        # 518 is not a multiple of 16; the paper does not state its size
        "image_size": 512,
    },
}
# Auxiliary dataset of a training run, and the datasets to evaluate it on
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


def settings() -> dict[str, tuple[dict, dict]]:
    """Return folder -> fields that differ from the paper's main configuration, and settings of the training."""
    main = "vcp-clip-vit-large-patch14-336"
    return {
        f"{main}-visa": ({}, _VISA),
        f"{main}-mvtec-ad": ({}, _MVTEC),
        "vcp-clip-vit-large-patch14-224": (_TOWERS["vit-large-patch14-224"], _VISA),
        "vcp-clip-vit-base-patch16-224": (_TOWERS["vit-base-patch16-224"], _VISA),
        "vcp-clip-baseline": ({"use_pre_vcp": False, "use_post_vcp": False}, _VISA),
    }


def method_settings() -> dict[str, dict]:
    """
    Return model type -> settings of the training, for the other trained methods.

    APRIL-GAN: as in its authors' script for VisA, which runs 15 epochs and uses the last; with MVTec-AD it runs 3
    epochs, with mosaics. AnomalyCLIP: as in its authors' script, where the last epoch is used. CoCoOp: there is no
    public code for segmentation; its patch adapters and temperature are those of VCP-CLIP's baseline, so it is trained
    like that.
    CLIP-AD: SDP+ as in its authors' script, with PyTorch's own betas.
    """
    as_in_the_scripts = {
        **_VISA,
        "validation_products": 0,
        "augmentation": False,
        "learning_rate": 1e-3,
        "num_train_epochs": 15,
        "per_device_train_batch_size": 8,
        "mixed_precision": "no",
        "seed": 111,
    }
    return {
        "april_gan": as_in_the_scripts,
        "anomaly_clip": as_in_the_scripts,
        "cocoop": {**_VISA, "validation_products": 2},
        "clip_ad": {
            **_VISA,
            "validation_products": 0,
            "augmentation": False,
            "learning_rate": 1e-4,
            "adam_beta1": 0.9,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 8,
            "seed": 42,
        },
    }


# Model type -> fields that differ from the method's default. The backbone is a folder that the converter of open_clip
# writes, see docs/conversion.md
_METHOD_FIELDS = {"clip_ad": {"use_adapters": True, "backbone_name_or_path": "vit-b-16-plus-240"}}


# Families that look like products of the real data sets on which the embedded checkpoint is measured. It is not
# trained on them, so that those products are of unseen kinds
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
    """Return the families that the embedded checkpoint is trained on."""
    return sorted(name for name in set(select_products("seen")) - set(KEPT_OUT) if possible_defects(name))


def embedded_config() -> VCPCLIPConfig:
    """Return the configuration of the embedded checkpoint: VCP-CLIP on the CLIP of `pretrain_clip.py`."""
    options = pretrain_clip.parse(["--output_dir", ""])
    tokenizer = load_tokenizer(options)
    clip = pretrain_clip.make_config(tokenizer, options)
    states = {"normal": ["a photo of a good {}"], "abnormal": ["a photo of a damaged {}"]}
    fields = {}
    for state, prompts in states.items():
        fields[f"{state}_prompts"] = prompts
        fields[f"{state}_prompt_input_ids"] = tokenize_prompts(prompts, tokenizer, len(tokenizer))
    return VCPCLIPConfig(
        text_config=clip.text_config.to_dict(),
        # `efficientnet_stem.with_stem` adds the stem to the trained model, as memory of references and for its branch
        vision_config={**clip.vision_config.to_dict(), "stem": "efficientnet_lite2", "stem_projection": False},
        projection_dim=clip.projection_dim,
        image_size=224,
        category_token_id=len(tokenizer),
        # chosen on the photographs of `materials/` and on generated pictures, see BENCHMARKS.md
        reference_layers=["stem"],
        reference_scale=2.5,
        reference_distance="relative",
        reference_fusion="logits",  # chosen earlier, on samples of real data sets
        use_stem_branch=True,
        # better than 0.5 on generated pictures; real data sets were seen too, see BENCHMARKS.md
        stem_branch_weight=0.65,
        **fields,
    )


# Half a cell of the stem branch, in pixels
_EMBEDDED_SMOOTHING = 2.0
_EMBEDDED_RUN = {
    "output_dir": "runs/vcp-clip-tiny",
    "dataset": "synthetic",
    "split": "train",
    "dataset_options": {"num_images": 6000, "size": 256},
    "products": embedded_products(),
    "validation_products": 0,
    # there are enough pictures; without augmentation the frozen tower runs once per picture
    "augmentation": False,
    "image_feature_dir": "runs/vcp-clip-tiny/image_features",
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "mixed_precision": "bf16",
}


def write(root: Path = ROOT) -> None:
    """Write all folders."""
    for name, (fields, training) in settings().items():
        backbone = next((key for key in _BACKBONES if name.endswith(key)), "vit-large-patch14-336")
        config = VCPCLIPConfig(**{"backbone_name_or_path": _BACKBONES[backbone], **fields})
        run = {"output_dir": f"runs/{name}", **training, "validation_products": 2}
        _write_folder(root / name, config, {}, run)
    for name, training in method_settings().items():
        backbone = _BACKBONES["vit-large-patch14-336"]
        config = METHODS[name].config_class(**{"backbone_name_or_path": backbone, **_METHOD_FIELDS.get(name, {})})
        _write_folder(root / name, config, {}, {"output_dir": f"runs/{name}", **training})
    config = embedded_config()
    processing = {"smoothing_sigma": _EMBEDDED_SMOOTHING, "resize_mode": "keep_ratio"}
    _write_folder(root / "vcp-clip-tiny", config, processing, _EMBEDDED_RUN)


def _write_folder(folder: Path, config: FrozenCLIPConfig, processing: dict, run: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(config, **processing).save_pretrained(folder)
    (folder / "train.yaml").write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    write()
