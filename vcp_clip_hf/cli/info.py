"""`vcp-clip info`."""

import json
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..version import EMBEDDED_CHECKPOINT, versions
from .common import Model


if TYPE_CHECKING:
    from ..configuration_frozen_clip import FrozenCLIPConfig

__all__ = ["info"]


def info(
    model: Model = EMBEDDED_CHECKPOINT,
    datasets: Annotated[bool, typer.Option("--datasets", help="List the datasets that can be read.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods that can be compared.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print versions, device and the facts of a checkpoint, for bug reports."""
    if datasets:
        from ..data import list_datasets

        for summary in list_datasets():
            paper = " (paper)" if summary.in_paper else ""
            typer.echo(f"{summary.name:<16}{summary.title}{paper}; {summary.license}")
        return
    if methods:
        from ..configuration_vcp_clip import VCPCLIPConfig
        from ..methods import METHODS

        for config in (VCPCLIPConfig, *(METHODS[name].config_class for name in sorted(METHODS))):
            typer.echo(f"{config.model_type:<16}{config.title}: {config.source}")
        return
    facts = _facts(model)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        for line in _as_text(value).splitlines():
            typer.echo(f"{name:<22}{line}")
            name = ""


def _facts_of_vcp_clip(config: "FrozenCLIPConfig") -> dict[str, Any]:
    """Return facts that other methods do not have."""
    from ..configuration_vcp_clip import VCPCLIPConfig

    if not isinstance(config, VCPCLIPConfig):
        return {}
    prompts = [*config.normal_prompts, *config.abnormal_prompts]
    facts = {"prompts": prompts, "fusion weight": config.fusion_weight}
    if config.use_stem_branch:
        facts["stem branch weight"] = config.stem_branch_weight
    return facts


def _as_text(value: Any) -> str:
    """Return a fact as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_as_text, value))
    return "none" if value is None else str(value)


def _facts(model: str) -> dict[str, Any]:
    import torch

    from ..calibration import describe_calibration
    from ..checkpoint_folder import load_config, load_image_processor
    from ..reference_pictures import load_references

    config = load_config(model)
    processor = load_image_processor(model, config)
    references = load_references(model)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        **versions("torch", "transformers", "accelerate", "huggingface_hub", "numpy", "pillow"),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "device": str(accelerator) if accelerator is not None else f"cpu, {torch.get_num_threads()} threads",
        "checkpoint": model,
        "method": config.title,
        "backbone": " ".join(
            [*([config.backbone_name_or_path] if config.backbone_name_or_path else []), "included"]
            if config.backbone_included
            else [f"{config.backbone_name_or_path} (not included)"]
        ),
        "image size": [processor.size.height, processor.size.width],
        "resize mode": processor.resize_mode,
        "feature layers": getattr(config, "feature_layers", None),
        **_facts_of_vcp_clip(config),
        "smoothing sigma": processor.smoothing_sigma,
        "score mode": processor.score_mode,
        "threshold": processor.threshold,
        "image threshold": processor.image_threshold,
        "references": None if references is None else references.describe(),
        "calibration": "\n".join(describe_calibration(processor.calibration)) if processor.calibration else None,
    }
