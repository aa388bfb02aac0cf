"""A tiny SAA model of random networks: a detector, SAM, and a saliency network of three convolutions."""

import torch
from torch import nn
from transformers import BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, SamConfig, SamModel

from vcp_clip_hf.methods import SAAModel


# Grounding DINO knows the ids of [CLS], [SEP], "." and "?"
_FIXED = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
_WORDS = (
    *(
        "defect",
        "damage",
        "flaw",
        "on",
        "black",
        "hole",
        "scratch",
        "nut",
        "##nut",
        "metal",
        "carpet",
        "thread",
        "_",
        ",",
    ),
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
)
VOCAB_SIZE = 1100


class TinySaliency(nn.Module):
    """Three convolutions, at 1/4, 1/8 and 1/16 of the size, like the levels of the network that SAA+ uses."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 8, 2, 2), nn.Conv2d(8, 4, 2, 2)])

    def forward(self, images):
        """Return the three feature maps."""
        found = []
        for level in self.levels:
            images = level(images)
            found.append(images)
        return found


def tiny_bert_tokenizer(size: int = VOCAB_SIZE) -> BertTokenizer:
    """Make a WordPiece tokenizer of a few words and all letters."""
    free = (number for number in range(size) if number not in _FIXED)
    vocabulary = {word: number for number, word in _FIXED.items()}
    vocabulary |= dict(zip(_WORDS, free, strict=False))
    vocabulary |= {f"[unused{number}]": number for number in free}
    return BertTokenizer(vocab=vocabulary)


def tiny_detector() -> GroundingDinoForObjectDetection:
    """Make a random detector of 12 boxes."""
    return GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config={
                **{"model_type": "swin", "window_size": 4, "embed_dim": 8, "image_size": 64},
                **{"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "out_indices": [2, 3, 4]},
            },
            text_config={
                **{"model_type": "bert", "vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1},
                **{"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64},
            },
            **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 12, "max_text_len": 32},
        )
    ).eval()


def tiny_segmenter() -> SamModel:
    """Make a random SAM for inputs of 64 x 64 pixels, with lively masks."""
    vision = {
        **{"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8},
        **{"mlp_ratio": 2.0, "initializer_range": 0.2},
    }
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        **{"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"iou_head_hidden_dim": 16},
    }
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)).eval()


def tiny_saa(seed: int = 0, **fields) -> SAAModel:
    """Make a model in evaluation mode, for images of 64 x 64 pixels."""
    torch.manual_seed(seed)
    small = {"image_size": 64, "detector_edges": [96, 160], "saliency_sizes": [32, 64], "num_largest_distances": 20}
    return SAAModel.from_networks(
        tiny_detector(),
        tiny_segmenter(),
        tiny_bert_tokenizer(),
        TinySaliency(),
        **{**small, **fields},
    )
