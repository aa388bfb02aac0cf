"""Captions of rendered pictures, from a closed set of words (for a small tokenizer)."""

import itertools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from .catalog import product_family
from .registry import DEFECTS, FAULTS, PRODUCTS
from .render import SyntheticSample


__all__ = ["ABNORMAL_STATES", "NORMAL_STATES", "caption", "caption_words", "captions"]

NORMAL_STATES = ("good", "flawless", "perfect", "intact", "pristine", "undamaged", "normal", "unblemished")
ABNORMAL_STATES = ("damaged", "defective", "broken", "flawed", "faulty", "imperfect", "abnormal", "blemished")

_FRAMES = (
    "a photo of {}",
    "a photo of {}",
    "a photo of {}",
    "a close-up photo of {}",
    "a cropped photo of {}",
    "an industrial photo of {}",
    "a photo of {} for visual inspection",
    "an image of {}",
    "a picture of {}",
    "{}",
)
_NORMAL = (
    "{a} {state} {product}",
    "{a} {state} {product}",
    "{a} {product} without defect",
    "{a} {product} without flaw",
    "{a} {product} without damage",
    "{a} {product} in {state} condition",
)
_ABNORMAL = (
    "{a} {state} {product}",
    "{a} {state} {product}",
    "{a} {product} with {defect}",
    "{a} {product} with {defect}",
    "{a} {state} {product} with {defect}",
    "{defect} on {a} {product}",
    "{a} {product} with a defect",
    "{a} {product} with damage",
)
_PART_WORDS = {
    "missing_part": ("missing {}", "lost {}"),
    "bent_part": ("bent {}", "deformed {}"),
    "misplaced_part": ("misplaced {}", "misaligned {}"),
    "broken_part": ("broken {}", "damaged {}"),
    "wrong_part": ("wrong {}", "mismatched {}"),
    "print_error": ("print error", "misprinted {}"),
}
# nouns without an indefinite article, in addition to plurals
_UNCOUNTABLE = frozenset(
    [
        "leather",
        "upholstery",
        "denim",
        "cloth",
        "fabric",
        "felt",
        "carpet",
        "knitwear",
        "textile",
        "marble",
        "pavement",
        "cardboard",
        "asphalt",
        "steel",
        "hide",
        "rubber",
        "glass",
        "contamination",
        "dirt",
        "dust",
        "rust",
        "pitting",
        "corrosion",
        "crazing",
        "fraying",
        "flaking",
        "delamination",
        "abrasion",
        "discoloration",
        "distortion",
        "breakage",
        "damage",
        "residue",
        "tint",
        "weld",
    ]
)


def caption(record: SyntheticSample | Mapping, rng: np.random.Generator) -> str:
    """
    Return one random caption, e.g. "a close-up photo of a cracked ceramic tile with a fissure".

    Args:
        record ([`SyntheticSample`] or mapping): picture with `product` and `defect` ("good" for normal pictures).
        rng (`np.random.Generator`): source of randomness.

    Returns:
        `str`: lower case, without a full stop.

    Raises:
        ValueError: names that the generator does not know.
    """
    product, defect = _product_and_defect(record)
    names, states, nouns = _vocabulary(product, defect)
    pattern = _pick(_NORMAL if defect == "good" else _ABNORMAL, rng)
    name, state = _pick(names, rng), _pick(states, rng)
    noun = _pick(nouns, rng) if nouns else ""
    return _compose(_pick(_FRAMES, rng), pattern, name, state, noun)


def captions(product: str, defect: str = "good") -> Iterator[str]:
    """Yield every caption that a product family with this defect can get: thousands, some of them repeated."""
    names, states, nouns = _vocabulary(product, defect)
    for pattern in _NORMAL if defect == "good" else _ABNORMAL:
        pattern_states = states if "{state}" in pattern else ("",)
        pattern_nouns = nouns if "{defect}" in pattern else ("",)
        for name, state, noun, frame in itertools.product(names, pattern_states, pattern_nouns, _FRAMES):
            yield _compose(frame, pattern, name, state, noun)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def _compose(frame: str, pattern: str, name: str, state: str, noun: str) -> str:
    """Return a caption: a pattern with its words, put into a frame."""
    first = state if "{a} {state}" in pattern else name
    phrase = pattern.format(a=_article(first, name), state=state, product=name, defect=noun)
    return frame.format(" ".join(phrase.split()))


def caption_words() -> list[str]:
    """Return every word of every caption, sorted."""
    texts = [*_FRAMES, *_NORMAL, *_ABNORMAL, *NORMAL_STATES, *ABNORMAL_STATES, "a an"]
    for family in PRODUCTS.values():
        texts += [*family.products, *family.faults.values()]
    for defect in DEFECTS.values():
        texts += [*defect.words, *defect.adjectives]
    for name, states in FAULTS.items():
        texts += [*states, *_PART_WORDS[name]]
    return sorted({word for text in texts for word in re.sub(r"{\w*}", " ", text).split()})


def _product_and_defect(record: SyntheticSample | Mapping) -> tuple[str, str]:
    """Return names of the product family and the defect."""
    if isinstance(record, Mapping):
        return record["product"], record["defect"]
    return record.product, record.defect


def _vocabulary(product: str, defect: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return names of the product, states for captions, and nouns of the defect with their articles."""
    family = product_family(product)
    if defect == "good":
        return family.products, NORMAL_STATES, ()
    if defect in FAULTS and defect in family.faults:
        phrases = [words.format(family.faults[defect]) for words in _PART_WORDS[defect]]
        nouns = tuple(f"{_article(phrase, phrase)} {phrase}".strip() for phrase in phrases)
        return family.products, (*ABNORMAL_STATES, *FAULTS[defect]), nouns
    if defect not in DEFECTS:
        raise ValueError(f"Unknown defect {defect!r} of {product!r}; expected one of {', '.join(sorted(DEFECTS))}.")
    kind = DEFECTS[defect]
    nouns = tuple(f"{_article(word, word)} {word}".strip() for word in kind.words)
    # repeated, so that the defect's own adjectives are about as frequent as the general ones
    return family.products, (*ABNORMAL_STATES, *(kind.adjectives * 4)), nouns


def _article(first: str, noun: str) -> str:
    """Return "a", "an", or "" for plurals and materials; `first` is the word that follows."""
    last = noun.split()[-1]
    if last in _UNCOUNTABLE or (last.endswith("s") and not last.endswith(("ss", "us"))):
        return ""
    return "an" if first[0] in "aeio" or first.startswith("un") else "a"
