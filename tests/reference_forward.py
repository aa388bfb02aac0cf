"""VCP-CLIP as the paper's equations state it: slow, but easy to compare with the paper.

One image at a time, eager attention, all 77 text tokens, keys and values of every patch, both states upsampled. Tests
compare the package's forward pass with this one, and `examples/research/benchmark` measures both.
"""

import math

import torch
import torch.nn.functional as F

from vcp_clip_hf import VCPCLIPModel


def attention(module, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Compute the multi-head attention of a CLIP layer, (tokens, width) -> (tokens, width)."""
    tokens, width = hidden_states.shape
    heads, head_width = module.num_heads, width // module.num_heads
    q, k, v = (
        projection(hidden_states).view(tokens, heads, head_width).transpose(0, 1)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    scores = q @ k.transpose(1, 2) / math.sqrt(head_width)
    if mask is not None:
        scores = scores + mask
    return module.out_proj((scores.softmax(dim=-1) @ v).transpose(0, 1).reshape(tokens, width))


def block(layer, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute a pre-norm transformer block of CLIP."""
    hidden_states = hidden_states + attention(layer.self_attn, layer.layer_norm1(hidden_states), mask)
    return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))


def encode_image(model: VCPCLIPModel, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Encode an image (3, H, W) to patch tokens (N, d_v) per feature layer, and the global feature (d,)."""
    vision = model.clip.vision_model
    patches = vision.embeddings.patch_embedding(image[None])[0]
    table = vision.embeddings.position_embedding.weight
    side = math.isqrt(len(table) - 1)
    if patches.shape[1:] != (side, side):
        grid = table[1:].view(side, side, -1).permute(2, 0, 1)[None]
        grid = F.interpolate(grid.float(), size=patches.shape[1:], mode="bicubic", align_corners=False, antialias=True)
        table = torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])
    tokens = torch.cat([vision.embeddings.class_embedding[None], patches.flatten(1).T])
    hidden_states = vision.pre_layrnorm(tokens + table)
    features = []
    for number, layer in enumerate(vision.encoder.layers, start=1):
        hidden_states = block(layer, hidden_states)
        if number in model.config.feature_layers:
            features.append(hidden_states[1:])
    return features, model.clip.visual_projection(vision.post_layernorm(hidden_states[0]))


def encode_prompt(model: VCPCLIPModel, ids: list[int], category: torch.Tensor) -> torch.Tensor:
    """Encode token ids and category tokens (r, d) to a normalized text embedding (d,)."""
    config, text = model.config, model.clip.text_model
    length = text.embeddings.position_embedding.num_embeddings
    slot = ids.index(config.category_token_id)
    words = text.embeddings.token_embedding.weight
    sequence = torch.cat([words[ids[:slot]], category, words[ids[slot + 1 :]]])
    end = len(sequence) - 1
    padding = words[0].expand(length - len(sequence), -1)
    hidden_states = torch.cat([sequence, padding]) + text.embeddings.position_embedding.weight

    n = config.num_deep_prompt_tokens
    at = 1 if config.deep_prompt_position == "start" else end
    mask = torch.full((length + n, length + n), -torch.inf).triu(1)
    mask = mask.to(hidden_states)
    for index, layer in enumerate(text.encoder.layers):
        if n:
            tokens = model.deep_prompts.projection(model.deep_prompts.embeddings[index])
            after = at if index == 0 else at + n
            hidden_states = torch.cat([hidden_states[:at], tokens, hidden_states[after:]])
        hidden_states = block(layer, hidden_states, mask)
    embedding = model.clip.text_projection(text.final_layer_norm(model.prompt_norm(hidden_states[end + n])))
    return F.normalize(embedding, dim=-1)


def post_vcp(model: VCPCLIPModel, text: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Update text embeddings (2, d) with normalized patch tokens (N, d_v); return (2, d_v)."""
    module = model.post_vcp
    heads = module.num_heads
    q = module.query_projection(text).unflatten(-1, (heads, -1)).transpose(0, 1)
    k = module.key_projection(patches).unflatten(-1, (heads, -1)).transpose(0, 1)
    v = module.value_projection(patches).unflatten(-1, (heads, -1)).transpose(0, 1)
    updated = (q @ k.transpose(1, 2)).softmax(dim=-1) @ v
    return F.normalize(module.output_projection(updated.transpose(0, 1).flatten(1)), dim=-1)


def upsample(logits: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Upsample logits (N, 2) to the probability (H, W) of the abnormal state."""
    maps = logits.T.view(1, 2, *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True).softmax(dim=1)[0, 1]


def reference_forward(model: VCPCLIPModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Compute the forward pass of a model.

    Args:
        model ([`VCPCLIPModel`]): model in evaluation mode.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`).

    Returns:
        `dict` with `anomaly_map` (B, H, W), `base_layer_maps` and `vcp_layer_maps` (B, K, H, W), `text_embeds`
        (B, 2, d) and `image_embeds` (B, d); without Post-VCP, `vcp_layer_maps` is missing.
    """
    config = model.config
    size = pixel_values.shape[-2:]
    grid = (size[0] // config.vision_config.patch_size, size[1] // config.vision_config.patch_size)
    results = []
    for image in pixel_values:
        features, image_embed = encode_image(model, image)
        category = model.pre_vcp.category_embeddings
        if config.use_pre_vcp:
            category = category + model.pre_vcp.mini_net(image_embed[None])
        states = []
        for prompts in (config.normal_prompt_input_ids, config.abnormal_prompt_input_ids):
            mean = torch.stack([encode_prompt(model, ids, category) for ids in prompts]).mean(dim=0)
            states.append(F.normalize(mean, dim=-1))
        text = torch.stack(states)

        base, vcp = [], []
        for tokens, projection in zip(features, model.feature_projections, strict=True):
            logits = model.base_logit_scale.exp() * F.normalize(projection(tokens), dim=-1) @ text.T
            base.append(upsample(logits, grid, size))
            if config.use_post_vcp:
                patches = F.normalize(tokens, dim=-1)
                logits = model.vcp_logit_scale.exp() * patches @ post_vcp(model, text, patches).T
                vcp.append(upsample(logits, grid, size))
        result = {"base_layer_maps": torch.stack(base), "text_embeds": text, "image_embeds": image_embed}
        result["anomaly_map"] = result["base_layer_maps"].mean(dim=0)
        if vcp:
            result["vcp_layer_maps"] = torch.stack(vcp)
            a = config.fusion_weight
            result["anomaly_map"] = (1 - a) * result["anomaly_map"] + a * result["vcp_layer_maps"].mean(dim=0)
        results.append(result)
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}
