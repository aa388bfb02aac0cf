"""Measure what references cost: the forward pass with a memory beside the zero-shot pass, and the making of a memory.

    python -m examples.research.benchmark_references                # ViT-L/14 at 518 with random weights, float32
    python -m examples.research.benchmark_references --model checkpoint --dtype bfloat16 --device cuda

All ways are timed in turns, so that a slow phase of the machine affects all of them; the ratios are medians over
rounds. Random rows cost the same as tokens of images. Goals: 8 % more time than zero-shot for 4 references, and 15 %
for 10,000 patches of each layer, the coreset of 1,000 references.
"""

import argparse
import json
import statistics

import torch

from examples.research.benchmark.clock import seconds, time_in_turns
from examples.research.benchmark.setting import DTYPES, Setting, load
from vcp_clip_hf import VCPCLIPModel, accelerate_inference
from vcp_clip_hf.convolutional_stem import layer_width
from vcp_clip_hf.coreset import greedy_k_center
from vcp_clip_hf.memory_settings import MemorySettings
from vcp_clip_hf.referenced_model import ReferencedModel
from vcp_clip_hf.references import ReferenceMemory


__all__ = ["main", "make_parser", "random_memory"]

ZERO_SHOT = "zero-shot"


def random_memory(model: VCPCLIPModel, rows: int) -> ReferenceMemory:
    """
    Return a memory of random unit vectors, in the model's dtype and on its device.

    Args:
        model ([`VCPCLIPModel`]): its configuration names the layers.
        rows (`int`): patches of each layer.
    """
    layers = tuple(model.config.memory_layers)
    generator = torch.Generator().manual_seed(0)
    vision = model.config.vision_config
    banks = {layer: torch.randn(rows, layer_width(layer, vision), generator=generator) for layer in layers}
    banks = {layer: torch.nn.functional.normalize(bank, dim=1) for layer, bank in banks.items()}
    rows_of = {layer: torch.zeros(rows, dtype=torch.int32) for layer in layers}
    memory = ReferenceMemory(banks, rows_of, MemorySettings(layers, max_patches=rows), ["random"], rows)
    return memory.to(model.device, model.dtype)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint; without it, random weights of --model_config")
    parser.add_argument("--model_config", help="folder with a config.json; default: ViT-L/14")
    parser.add_argument("--image_size", type=int, help="side in pixels, a multiple of the patch size")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument(
        "--references", type=int, nargs="+", default=[4], help="pictures, all of whose patches are kept"
    )
    parser.add_argument("--max_patches", type=int, nargs="+", default=[10_000], help="sizes of a full coreset")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--coreset", action="store_true", help="measure the choice of one coreset too")
    return parser


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Measure and print; return the ratio of each way to zero-shot."""
    options = make_parser().parse_args(arguments)
    model, _ = load(options)
    size = options.image_size or model.config.input_size[0]
    setting = Setting(torch.device(options.device), options.dtype, options.batch_size, size)
    network = accelerate_inference(model.to(setting.device, setting.dtype))
    inputs = setting.pixel_values().to(setting.device, setting.dtype)
    patches = (size // model.config.vision_config.patch_size) ** 2

    rows = {f"{count} references": count * patches for count in options.references}
    rows |= {f"coreset of {count} patches": count for count in options.max_patches}
    networks = {name: ReferencedModel(network, random_memory(network, count)) for name, count in rows.items()}
    ways = {ZERO_SHOT: lambda: network(inputs)}
    ways |= {name: lambda each=each: each(inputs) for name, each in networks.items()}
    for run in ways.values():
        run()
    times = time_in_turns(ways, setting.device, options.rounds)

    ratios = {}
    for name, taken in times.items():
        ratios[name] = statistics.median(mine / plain for mine, plain in zip(taken, times[ZERO_SHOT], strict=True))
        milliseconds = 1e3 * statistics.median(taken) / options.batch_size
        print(json.dumps(setting.row(name, ms_per_image=milliseconds, times_zero_shot=ratios[name])))
    if options.coreset:
        for count in rows.values():
            vectors = random_memory(network, 2 * count).banks[model.config.memory_layers[0]]
            taken = seconds(lambda vectors=vectors, count=count: greedy_k_center(vectors, count), setting.device)
            print(json.dumps(setting.row(f"choice of {count} of {2 * count} patches", seconds=taken)))
    return ratios


if __name__ == "__main__":
    main()
