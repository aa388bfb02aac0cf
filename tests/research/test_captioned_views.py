"""Pictures with captions: vocabulary, pool of scenes, sizes of batches, and pairs of views."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from examples.research import pretrain_clip
from examples.research.captioned_views import CAPTION_LENGTH, Sizes, Views, load_tokenizer, render_pool
from examples.research.material_scenes import MaterialScenes
from vcp_clip_hf import EMBEDDED_CHECKPOINT


PRODUCTS = ["bearing", "gear", "screw"]  # no names of materials
SCENE_SIZE = 64
SIZES = Sizes(steps=40, large_steps=10, image_size=32, large_image_size=48, batch_size=16, large_batch_size=8)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "pool"
    render_pool(folder, PRODUCTS, 12, SCENE_SIZE, 333, 1)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return load_tokenizer(pretrain_clip.parse(["--output_dir", ""]))


@pytest.fixture(scope="module")
def views(pool, tokenizer) -> Views:
    return Views(pool, MaterialScenes("train"), SIZES, tokenizer, seed=7)


def captions(views: Views, place: tuple[int, int]) -> list[str]:
    return views.tokenizer.batch_decode(views[place][1], skip_special_tokens=True)


def test_the_tokenizer_spells_unknown_words_in_bytes(tmp_path):
    options = pretrain_clip.parse(["--output_dir", "", "--tokenizer", str(tmp_path)])
    for tokenizer in (load_tokenizer(options), load_tokenizer(options)):  # made, then loaded
        assert 600 < len(tokenizer) <= 1024
        known = tokenizer("a photo of a damaged screw").input_ids
        assert known[0] == tokenizer.bos_token_id and known[-1] == tokenizer.eos_token_id
        assert len(tokenizer("damaged").input_ids) == 3, "a word of the captions is one token"
        unknown = tokenizer("zyzzyva").input_ids
        assert len(unknown) > 4 and tokenizer.decode(unknown, skip_special_tokens=True).strip() == "zyzzyva"
    kept = load_tokenizer(pretrain_clip.parse(["--output_dir", ""]))
    assert kept.get_vocab() == CLIPTokenizer.from_pretrained(EMBEDDED_CHECKPOINT).get_vocab()


def test_the_pool_has_every_scene_whole_and_damaged(pool):
    damaged, whole, masks = (np.load(pool / f"{name}.npy") for name in ("damaged", "whole", "masks"))
    facts = json.loads((pool / "facts.json").read_text())
    assert damaged.shape == whole.shape == (12, SCENE_SIZE, SCENE_SIZE, 3) and masks.shape == damaged.shape[:3]
    assert [fact["product"] for fact in facts] == PRODUCTS * 4 and "good" not in {fact["defect"] for fact in facts}
    assert masks.any(axis=(1, 2)).all() and (damaged != whole).any(axis=(1, 2, 3)).all()


def test_a_finished_pool_is_kept_and_an_unfinished_one_is_made_anew(pool, tmp_path):
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    (copy / "whole.npy").write_bytes(b"kept")
    render_pool(copy, PRODUCTS, 12, SCENE_SIZE, 333, 1)
    assert (copy / "whole.npy").read_bytes() == b"kept"
    (copy / "facts.json").unlink()
    render_pool(copy, PRODUCTS, 12, SCENE_SIZE, 333, 1)
    assert (copy / "whole.npy").read_bytes() == (pool / "whole.npy").read_bytes()


def test_the_last_steps_have_large_pictures():
    assert SIZES.at(0)[:2] == SIZES.at(29)[:2] == (32, 8) and SIZES.at(30)[:2] == SIZES.at(39)[:2] == (48, 4)
    assert SIZES.at(30)[2] > SIZES.at(29)[2], "and wider crops"
    batches = SIZES.batches(0)
    assert len(batches) == 40 and batches[3] == [(3, index) for index in range(8)] and len(batches[35]) == 4
    assert SIZES.batches(12) == batches[12:], "a resumed training sees the remaining batches"


@pytest.mark.parametrize(("step", "size"), [(0, 32), (35, 48)])
def test_a_pair_of_views(views, step, size):
    pixel_values, ids, labels = views[step, 1]
    assert pixel_values.shape == (2, 3, size, size) and pixel_values.dtype == torch.float32
    assert ids.shape == (2, CAPTION_LENGTH) and ids.dtype == torch.int64
    assert labels.shape == (2, size, size) and labels.dtype == torch.uint8
    colors = pixel_values * torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1) + torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
    assert colors.min() > -1e-4 and colors.max() < 1 + 1e-4
    assert not torch.equal(ids[0], ids[1])


def test_views_differ_where_the_labels_say(views):
    inside, outside, marked = [], [], 0
    for place in [(step, index) for step in (0, 1, 35) for index in range(8)]:
        pixel_values, _, labels = views[place]
        assert not labels[1].any() and set(labels.unique().tolist()) <= {0, 1}
        difference = (pixel_values[0] - pixel_values[1]).abs().amax(dim=0)
        marked += bool(labels[0].any())
        if 0 < labels[0].sum() < labels[0].numel():
            inside.append(difference[labels[0] > 0].mean())
            outside.append(difference[labels[0] == 0].mean())
    assert marked >= 22, "every crop contains a part of the damage, which may be narrower than a pixel"
    ratios = torch.stack(inside) / (torch.stack(outside) + 1e-6)
    # renderings also change outside the mask: a shadow moves with its part
    assert ratios.median() > 20 and (ratios > 2).float().mean() > 0.9


def test_an_item_depends_on_seed_and_place_alone(views, pool, tokenizer):
    places = [(0, 0), (0, 1), (1, 0), (35, 0)]
    again = Views(pool, MaterialScenes("train"), SIZES, tokenizer, seed=7)
    first = [views[place] for place in places]
    second = [again[place] for place in reversed(places)][::-1]
    for ours, theirs in zip(first, second, strict=True):
        assert all(map(torch.equal, ours, theirs))
    other = Views(pool, MaterialScenes("train"), SIZES, tokenizer, seed=8)
    pictures = [views[place][0] for place in places[:3]] + [other[0, 0][0]]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4


def test_pairs_come_from_renderings_and_materials(views):
    texts = [captions(views, (step, index))[0] for step in range(6) for index in range(8)]
    products = sum(any(product in text for product in PRODUCTS) for text in texts)
    assert 14 <= products <= 34, "half of the pairs show products"


def test_captions_of_a_pair_differ_in_the_damage_and_share_the_looks(views):
    located = looked = 0
    for place in [(step, index) for step in range(4) for index in range(8)]:
        damaged, whole = captions(views, place)
        assert damaged != whole
        extents = [f" , {word} , " in damaged for word in ("tiny", "small", "medium", "large")]
        located += any(extents)
        assert not any(f" , {word} , " in whole for word in ("tiny", "small", "medium", "large"))
        endings = [text.split(" , ")[-2:] for text in (damaged, whole)]
        looked += endings[0] == endings[1]
    assert 12 <= located <= 30, "about 70 % of the damaged views say where"
    assert 6 <= looked <= 26, "about half of the pairs say how bright and colored they are"
