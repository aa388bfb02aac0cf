"""Compare our methods with golden folders, which hold tensors of the authors' code on tiny random CLIPs.

    python -m tests.methods.golden FOLDER...

Prints a line for each stored quantity: name, largest difference, tolerance, `ok` or `FAIL`. The exit status is 1 if a
quantity is beyond its tolerance or was not checked. Everything is read from the folder: the method from `method` in
config.json, else from the title of its README; sizes from the weights; tolerances from the README.

A method has its own file `golden_<method>.py` here, with `check(folder) -> dict[str, Quantity]`.
"""

import argparse
import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

import tests.methods


# The attention that the authors' code computes: its order of operations leaves the smallest rounding differences
ATTENTION = "eager"

# Stands for each learned context vector in the authors' ids: the word "X"
PLACEHOLDER = 343
BOS, EOS, VOCAB_SIZE = 49406, 49407, 49408

# Where a README states no tolerance, by name; the first pattern that fits counts. Numbers of the specification for
# float32 on other kernels. Gradients are compared relative to their norm.
TOLERANCES = (
    ("gradients/after_*", 1e-4),
    ("gradients/*compound_prompts_text*", 1e-3),
    ("gradients/*", 1e-4),
    ("*loss_trajectory*", 1e-4),
    # AdamW amplifies rounding
    ("adapted_tokens.*", 2e-3),
    ("adapter_final.*", 2e-3),
    ("*", 1e-5),
)
# A stored tensor that only one method has, for folders without a name
TELLTALES = {
    "original_stream_last": "anomalyclip",
    "tta.anomaly_map": "anovl",
    "zero_shot.grid_map": "winclip",
    "few_shot_layer_maps": "april_gan",
    "zero_shot.anomaly_map": "april_gan",
    "sdp.anomaly_map": "clip_ad",
    "meta_token": "cocoop",
    "msm_scores": "musc",
}
_NUMBER = r"\d+(?:\.\d+)?e-\d+|\d*\.\d+"


@dataclass
class Quantity:
    """
    A stored tensor and ours.

    Args:
        expected, got (`torch.Tensor`): the two of them; booleans and integers must be equal.
        tolerance (`float`, *optional*): largest difference, if neither the README nor the usual one is right.
        relative (`bool`, *optional*, defaults to `False`): compare the norm of the difference with that of `expected`.
        summed (`int`, *optional*, defaults to 1): number of layers that the tensor is a sum of.
    """

    expected: torch.Tensor
    got: torch.Tensor
    tolerance: float | None = None
    relative: bool = False
    summed: int = 1

    def difference(self) -> float:
        """Return the largest difference; infinity for another shape, or where only one is not a number."""
        expected, got = (torch.as_tensor(each).detach().double().cpu() for each in (self.expected, self.got))
        if expected.shape != got.shape:
            return float("inf")
        if not expected.numel():
            return 0.0
        missing = expected.isnan()
        if not torch.equal(missing, got.isnan()):
            return float("inf")
        difference = (expected - got).masked_fill(missing, 0)
        difference[(expected == got)] = 0  # infinities
        if self.relative:
            return float(difference.norm() / expected.masked_fill(missing, 0).norm().clamp_min(1e-12))
        return float(difference.abs().max())


@dataclass
class GoldenFolder:
    """The contents of a golden folder. `input` marks a stored tensor as given, so that it needs no comparison."""

    path: Path
    inputs: set[str] = field(default_factory=set)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.json."""
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))

    @cached_property
    def readme(self) -> str:
        """Return README.md, or nothing."""
        path = self.path / "README.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    @cached_property
    def method(self) -> str:
        """Return the method's name."""
        title = re.match(r"\s*#+(.*)", self.readme)
        own = [method for name, method in TELLTALES.items() if name in self.expected]
        names = [self.config.get("method"), title and title[1], *own, self.path.resolve().name]
        names = [str(name) for name in names if name]
        return next((found for found in map(_checker_named, names) if found), names[0])

    def checker(self) -> Callable[["GoldenFolder"], dict[str, Quantity]]:
        """Return the method's `check`."""
        if self.method not in CHECKERS:
            raise ValueError(f"{self.path} is of the method {self.method!r}; there are checks of {sorted(CHECKERS)}.")
        return CHECKERS[self.method]

    def fields(self, **keys: str) -> dict[str, Any]:
        """
        Return fields of a method's configuration; one that config.json does not state keeps the method's default.

        Args:
            keys (`str`): field -> its name in config.json.
        """
        return {field: self.config[key] for field, key in keys.items() if key in self.config}

    @cached_property
    def image_size(self) -> list[int]:
        """Return height and width of the images."""
        return list(self.expected["pixel_values"].shape[-2:])

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of a safetensors file, none if there is no such file."""
        path = self.path / name
        return load_file(path) if path.is_file() else {}

    @cached_property
    def expected(self) -> dict[str, torch.Tensor]:
        """Return expected.safetensors."""
        return self.tensors("expected.safetensors")

    @cached_property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Return gradients.safetensors."""
        return self.tensors("gradients.safetensors")

    def input(self, name: str) -> torch.Tensor:
        """Return a stored tensor that is an input of the method."""
        self.inputs.add(name)
        return self.expected[name]

    def quantities(self, got: dict[str, torch.Tensor], **options: Any) -> dict[str, Quantity]:
        """Pair our tensors with the stored ones of the same names; others are left out."""
        return {name: Quantity(self.expected[name], each, **options) for name, each in got.items() if name in self}

    def __contains__(self, name: str) -> bool:
        return name in self.expected

    def keys(self, pattern: str) -> dict[str, str]:
        """Return the stored names that match a regular expression as a whole, with its first group."""
        found = {name: re.fullmatch(pattern, name) for name in self.expected}
        return {name: match[1] for name, match in found.items() if match}

    @cached_property
    def clip(self) -> CLIPModel:
        """Return the backbone, with the sizes of its weights."""
        weights = self.tensors("backbone.safetensors")
        ids, rows = weights.pop("token_embedding.ids"), weights.pop("token_embedding.rows")
        vocab_size = max(self.config["text"].get("vocab_size", VOCAB_SIZE), int(ids.max()) + 1)
        tokens = torch.zeros(vocab_size, rows.shape[1])
        tokens[ids] = rows
        weights["text_model.embeddings.token_embedding.weight"] = tokens
        clip = CLIPModel(clip_config(self.config, weights)).eval()
        clip.load_state_dict(weights, strict=True)
        return clip

    def stated_tolerances(self) -> list[tuple[str, float]]:
        """
        Return the README's tolerances as (pattern, value), those for names first.

        `- Tolerance (max abs): 1e-5; adapted_tokens.* and adapter_final.* 2e-3 (reason).`
        """
        named, general = [], []
        for line in re.findall(r"^[-* ]*Tolerances?\b[^:\n]*:(.*)$", self.readme, re.MULTILINE | re.IGNORECASE):
            for clause in line.split(";"):
                numbers = re.findall(_NUMBER, clause)
                if not numbers:
                    continue
                words = [word.strip("`,()") for word in clause.split()]
                words = [word if "*" in word else word.rstrip(".") for word in words]
                patterns = ["gradients/*" if word == "gradients" else word for word in words]
                patterns = [word for word in patterns if self._names_something(word)]
                if patterns:
                    named += [(pattern, float(numbers[0])) for pattern in patterns]
                else:
                    general.append(("*", float(numbers[0])))
        return [*named, *general[:1]]

    def _names_something(self, word: str) -> bool:
        names = [*self.expected, *(f"gradients/{name}" for name in self.gradients)]
        return len(word) > 1 and any(fnmatch(name, word) for name in names)

    def tolerance(self, name: str, quantity: Quantity) -> float:
        """Return the largest permitted difference of a quantity."""
        if quantity.tolerance is not None:
            return quantity.tolerance
        if not torch.as_tensor(quantity.expected).is_floating_point():
            return 0.0
        for pattern, value in self.stated_tolerances():
            if fnmatch(name, pattern) and not (pattern == "*" and name.startswith("gradients/")):
                return value
        return next(value * quantity.summed for pattern, value in TOLERANCES if fnmatch(name, pattern))


def clip_config(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> CLIPConfig:
    """Return the configuration of a backbone: heads and activation as stated, all other sizes from its weights."""
    towers = {}
    for name in ("text", "vision"):
        prefix = f"{name}_model.encoder.layers"
        width, hidden = weights[f"{prefix}.0.mlp.fc1.weight"].shape
        towers[name] = {
            **{key: value for key, value in config.items() if key in ("hidden_act", "layer_norm_eps")},
            **config[name],
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_hidden_layers": 1 + max(int(key.split(".")[3]) for key in weights if key.startswith(prefix)),
            "projection_dim": len(weights[f"{name if name == 'text' else 'visual'}_projection.weight"]),
        }
    towers["text"] |= {
        "vocab_size": len(weights["text_model.embeddings.token_embedding.weight"]),
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    towers["vision"]["patch_size"] = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    return CLIPConfig(
        text_config=towers["text"],
        vision_config=towers["vision"],
        projection_dim=towers["text"]["projection_dim"],
    )


class RecordedTokenizer:
    """
    A tokenizer that knows the sentences of a golden folder only: the folder has their ids, not the vocabulary.

    Args:
        vocab_size (`int`): number of entries that the tokenizer claims to have.
    """

    bos_token_id, eos_token_id, unk_token_id = BOS, EOS, EOS

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.rows: dict[str, list[int]] = {}

    def record(self, sentences: Sequence[str], ids: torch.Tensor) -> Quantity:
        """
        Learn the ids of sentences, and return how well they fit.

        A CLIP tokenizer encodes word by word. So the ids of all sentences together are a linear function of their
        words, unless the sentences are in another order than the rows of ids, or have other words.
        """
        rows = [row[1 : row.index(EOS)] for row in ids.tolist()]
        self.rows |= dict(zip(sentences, rows, strict=False))
        if len(rows) != len(sentences):
            return Quantity(torch.tensor([float(len(rows))]), torch.tensor([float(len(sentences))]))
        words = [re.findall(r"[^\W\d_]+|\d|[^\s\w]+|_+", sentence.lower()) for sentence in sentences]
        inputs, outputs = _counts(words), _counts(rows)
        solution = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
        return Quantity(torch.from_numpy(outputs), torch.from_numpy(inputs @ solution), tolerance=1e-6)

    def __call__(self, sentences: Sequence[str], add_special_tokens: bool = False) -> SimpleNamespace:
        unknown = [sentence for sentence in sentences if sentence not in self.rows]
        if unknown:
            raise KeyError(f"{unknown[0]!r} is not among the sentences of the golden folder.")
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[list(self.rows[sentence]) for sentence in sentences])

    def __len__(self) -> int:
        return self.vocab_size

    def save_pretrained(self, folder: str) -> None:
        """Save nothing."""


def _counts(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return how often each word occurs in each row: (rows, words)."""
    columns = {word: index for index, word in enumerate(dict.fromkeys(word for row in rows for word in row))}
    counts = np.zeros((len(rows), len(columns)))
    for index, row in enumerate(rows):
        for word in row:
            counts[index, columns[word]] += 1
    return counts


def adam_steps(
    folder: GoldenFolder, parameters: dict[str, torch.nn.Parameter], loss: Callable[[], torch.Tensor]
) -> dict[str, Quantity]:
    """
    Return the gradients of a loss, and the losses and parameters of some Adam steps, where the folder has them.

    Args:
        folder ([`GoldenFolder`]): learning rate and betas stand in its README.
        parameters (`dict[str, nn.Parameter]`): name in gradients.safetensors -> parameter; changed by the steps.
        loss (`Callable[[], torch.Tensor]`): computes the loss of the batch.
    """
    quantities = {}
    for parameter in parameters.values():
        parameter.grad = None
    loss().backward()
    for name, parameter in parameters.items():
        if name in folder.gradients:
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            quantities[f"gradients/{name}"] = Quantity(folder.gradients[name], got, relative=True)
    after = {name: re.fullmatch(r"after_(\d+)_steps\.(.+)", name) for name in folder.gradients}
    after = {name: match for name, match in after.items() if match}
    if "loss_trajectory" not in folder.expected and not after:
        return quantities

    stated = re.search(rf"lr ({_NUMBER}), betas ({_NUMBER})/({_NUMBER})", folder.readme)
    rate, *betas = map(float, stated.groups()) if stated else (1e-3, 0.5, 0.999)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=rate, betas=tuple(betas))
    losses = []
    trajectory = folder.expected.get("loss_trajectory")
    steps = max([*(int(match[1]) for match in after.values()), 0 if trajectory is None else len(trajectory)])
    for step in range(steps):
        optimizer.zero_grad()
        value = loss()
        losses.append(value.detach())
        value.backward()
        optimizer.step()
        for name, match in after.items():
            if int(match[1]) == step + 1 and match[2] in parameters:
                quantities[f"gradients/{name}"] = Quantity(
                    folder.gradients[name], parameters[match[2]].detach().clone()
                )
    if trajectory is not None:
        quantities["loss_trajectory"] = Quantity(trajectory, torch.stack(losses)[: len(trajectory)])
    return quantities


def compare(path: Path) -> Iterator[tuple[str, float, float | None, bool]]:
    """Yield name, largest difference, tolerance (`None` if not checked) and verdict of every stored quantity."""
    folder = GoldenFolder(path)
    with torch.random.fork_rng():
        quantities = folder.checker()(folder)
    for name, quantity in quantities.items():
        difference, tolerance = quantity.difference(), folder.tolerance(name, quantity)
        yield name, difference, tolerance, difference <= tolerance
    stored = [*folder.expected, *(f"gradients/{name}" for name in folder.gradients)]
    for name in stored:
        if name not in quantities and name not in folder.inputs:
            yield name, float("nan"), None, False


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare folders and print a line for each quantity; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    status = 0
    for path in parser.parse_args(arguments).folders:
        if not (path / "config.json").is_file():
            print(f"{path}\n  not a golden folder: it has no config.json  FAIL")
            status = 1
            continue
        print(f"{path} ({GoldenFolder(path).method})")
        try:
            for name, difference, tolerance, ok in compare(path):
                shown = f"{difference:.1e}  tolerance {tolerance:.0e}" if tolerance is not None else "not checked"
                print(f"  {name:40} {shown}  {'ok' if ok else 'FAIL'}")
                status |= not ok
        except (KeyError, OSError, RuntimeError, ValueError) as error:  # the other folders are compared nevertheless
            print(f"  {type(error).__name__}: {error}  FAIL")
            status = 1
    return status


def _checker_named(name: str) -> str | None:
    """Return the checker that a name such as "AnomalyCLIP" or "VAND-APRIL-GAN" stands for, or `None`."""

    def letters(text: str) -> str:
        return re.sub(r"[\W_]", "", text).lower()

    return max((each for each in CHECKERS if letters(each) in letters(name)), key=len, default=None)


def _find_checkers() -> dict[str, Callable[[GoldenFolder], dict[str, Quantity]]]:
    prefix = "golden_"
    names = [each.name for each in pkgutil.iter_modules(tests.methods.__path__) if each.name.startswith(prefix)]
    return {name.removeprefix(prefix): _lazy_check(f"{tests.methods.__name__}.{name}") for name in names}


def _lazy_check(module: str) -> Callable[[GoldenFolder], dict[str, Quantity]]:
    # On use only: each of these modules imports this one
    return lambda folder: importlib.import_module(module).check(folder)


CHECKERS = _find_checkers()


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.exit(main())
