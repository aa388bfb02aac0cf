"""Replayed passes give the results of the passes themselves, for every input; with operators recorded on a CPU."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch.testing import assert_close

from tests.common import HYBRID_VISION, tiny_config, tiny_model, tiny_tokenizer
from tests.common import seeded_pixels as pixels
from tests.operator_recorder import OperatorRecorder
from vcp_clip_hf import Acceleration, AnomalySegmentationPipeline, VCPCLIPImageProcessor, accelerate_inference
from vcp_clip_hf.accelerated_inference import AcceleratedVCPCLIPModel, accelerated_or_plain
from vcp_clip_hf.cuda_graphs import CapturedForwards, CUDARecorder


VARIANTS = {
    "paper": {},
    "without Pre-VCP": {"use_pre_vcp": False},
    "without Post-VCP": {"use_post_vcp": False},
    "several templates": {"normal": ["a {}", "one good {}"], "abnormal": ["a bad {}", "one {} with a flaw"]},
    "image head": {"use_image_head": True},
    "stem branch": {"vision_config": dict(HYBRID_VISION), "use_stem_branch": True},
}


def recorded(model, **faults) -> tuple[AcceleratedVCPCLIPModel, OperatorRecorder]:
    """Make an accelerated copy that records its passes on the CPU."""
    fast, recorder = accelerate_inference(model), OperatorRecorder(**faults)
    fast.captured = CapturedForwards(recorder)
    return fast, recorder


def prompt_ids(normal: int, abnormal: int) -> torch.Tensor:
    """Return prompts of one word and the category slot for each state."""
    slot = tiny_config().category_token_id
    return torch.tensor([[[512, word, slot, 513]] for word in (normal, abnormal)])


def same(ours, theirs, **tolerances):
    """Compare all outputs; by default they are equal in every bit."""
    tolerances = tolerances or {"rtol": 0, "atol": 0}
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_other_images_are_replayed(fields):
    model = tiny_model(**fields)
    fast, recorder = recorded(model)
    for seed in range(4):
        images = pixels(2, seed=seed)
        plain = accelerate_inference(model)(images)
        same(fast(images), plain)
    assert (recorder.recorded, recorder.replayed) == (1, 3), "the first pass of a kind is not recorded"


@pytest.mark.parametrize(
    "options",
    [
        {"output_layer_maps": True},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"output_hidden_states": [0, 2]},
        {"image_embeds": torch.linspace(-1, 1, 32)[None]},
        {"prompt_input_ids": prompt_ids(100, 77)},
    ],
    ids=["layers", "attentions", "all states", "two states", "other images' features", "prompts"],
)
@torch.no_grad()
def test_options_are_recorded_apart(options):
    model = tiny_model()
    fast, recorder = recorded(model)
    for seed in range(3):
        images = pixels(2, seed=seed)
        same(fast(images), accelerate_inference(model)(images))
        same(fast(images, **options), accelerate_inference(model)(images, **options))
    assert recorder.recorded == 2


@torch.no_grad()
def test_prompts_of_a_call_never_give_the_maps_of_others():
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    pipe = AnomalySegmentationPipeline(model=model, image_processor=processor, tokenizer=tiny_tokenizer())
    pipe._inference_model()
    pipe._network.captured = CapturedForwards(OperatorRecorder())
    plain = AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), accelerate=False
    )
    picture = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)).numpy()
    for words in ("fine", "old", "new", "fine", "old", "new", "fine", "old"):
        prompts = {"normal": words, "abnormal": "broken"}
        ours, theirs = pipe(picture, prompts=prompts), plain(picture, prompts=prompts)
        assert_close(ours["anomaly_map"], theirs["anomaly_map"], rtol=0, atol=1e-6)
    assert pipe._network.captured._recorder.replayed >= 3


@torch.no_grad()
def test_a_smaller_batch_is_padded_if_little_is_padding():
    model = tiny_model()
    fast, recorder = recorded(model)
    for _ in range(2):
        fast(pixels(4))
    for size, replayed in ((3, True), (2, False), (1, False), (4, True)):
        before, images = recorder.replayed, pixels(size, seed=size)
        outputs = fast(images)
        same(outputs, accelerate_inference(model)(images), rtol=2e-6, atol=2e-6)
        assert (recorder.replayed > before) == replayed and len(outputs.anomaly_map) == size
    assert recorder.recorded == 1
    fast(pixels(1))
    assert recorder.recorded == 2, "a size that comes again is recorded"


@torch.no_grad()
def test_the_padding_has_no_effect():
    fast, _ = recorded(tiny_model())
    for _ in range(2):
        fast(pixels(4))
    fast(pixels(4, seed=1))
    after_one = fast(pixels(3, seed=9))
    fast(pixels(4, seed=2) * 50)
    same(fast(pixels(3, seed=9)), after_one)


@torch.no_grad()
def test_sizes_and_types_are_recorded_apart():
    model = tiny_model()
    fast, recorder = recorded(model)
    kinds = [pixels(1, 48), pixels(1, 64), pixels(1, 48).double()]
    for images in kinds * 3:
        same(fast(images), accelerate_inference(model)(images))
    assert recorder.recorded == len(kinds)


@torch.no_grad()
def test_results_are_not_overwritten():
    fast, _ = recorded(tiny_model())
    for _ in range(2):
        fast(pixels(1))
    first = fast(pixels(1, seed=1))
    kept = copy.deepcopy(first)
    fast(pixels(1, seed=2))
    same(first, kept)


@torch.no_grad()
def test_graphs_are_few_and_the_last_ones():
    model = tiny_model()
    fast, recorder = recorded(model)
    sizes = range(16, 16 + 8 * 10, 8)
    for size in sizes:
        for seed in range(3):
            images = pixels(1, size, seed)
            same(fast(images), accelerate_inference(model)(images))
    assert len(fast.captured.describe()) == 8
    assert "88 x 88 pixels, torch.float32: 1 MiB reserved" in fast.captured.describe()[-1]
    before = recorder.recorded
    fast(pixels(1, 88))
    assert recorder.recorded == before
    fast(pixels(1, 16))
    assert recorder.recorded == before + 1, "the oldest was dropped"


@torch.no_grad()
def test_constants_that_were_dropped_stay_for_the_graphs_that_read_them():
    model = tiny_model()
    fast, recorder = recorded(model)
    for _ in range(2):
        fast(pixels(1, 48))
    with fast.captured.disabled():
        for side in range(56, 56 + 8 * 9, 8):
            fast(pixels(1, side))
    assert (48, 48) not in fast.clip.vision_model.embeddings.tables.values
    before, images = recorder.replayed, pixels(1, 48, seed=3)
    same(fast(images), accelerate_inference(model)(images))
    assert recorder.replayed == before + 1
    kept = [graph.kept for graph in fast.captured._graphs.values()]
    assert any((48, 48) in values for values in kept[0])


@torch.no_grad()
def test_constants_that_another_thread_drops_during_a_recording_stay_too():
    class Dropping(OperatorRecorder):
        def record(self, run):
            results = super().record(run)
            for constants in fast._constants():
                constants.clear()
            return results

    fast = accelerate_inference(tiny_model())
    fast.captured = CapturedForwards(Dropping())
    for _ in range(2):
        fast(pixels(1, 48))
    (graph,) = fast.captured._graphs.values()
    assert any((48, 48) in values for values in graph.kept)


def test_captures_end_where_every_input_is_new():
    fast, recorder = recorded(tiny_model())
    for index in range(70):
        for _ in range(2):
            fast(pixels(1), prompt_input_ids=prompt_ids(1 + index, 300))
    assert recorder.recorded == 64


# --- changes of the model -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_changed_weights_are_read_by_the_graph():
    model = tiny_model()
    fast, recorder = recorded(model)
    for _ in range(2):
        before = fast(pixels(1))
    model.feature_projections[0].weight.mul_(-1)  # not among what was computed beforehand: the copy reads its memory
    after = fast(pixels(1))
    assert recorder.replayed == 2
    same(after, accelerate_inference(model)(pixels(1)))
    assert (after.anomaly_map - before.anomaly_map).abs().max() > 1e-4


@torch.no_grad()
def test_a_copy_for_changed_weights_has_no_graphs():
    model = tiny_model()
    fast, _ = recorded(model)
    for _ in range(2):
        fast(pixels(1))
    model.pre_vcp.category_embeddings.add_(1)
    again = accelerated_or_plain(model, fast)
    assert again is not fast and again.captured.describe() == [] and again.captured is not fast.captured
    same(again(pixels(1)), accelerate_inference(model)(pixels(1)))


@torch.no_grad()
def test_moving_a_copy_drops_its_graphs():
    model = tiny_model()
    fast, recorder = recorded(model)
    for _ in range(2):
        fast(pixels(1))
    fast.double()
    assert fast.captured.describe() == []
    for _ in range(3):
        same(fast(pixels(1)), accelerate_inference(copy.deepcopy(model).double())(pixels(1)))
    assert recorder.recorded == 2


def test_other_references_never_give_old_maps():
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    pipe, plain = (
        AnomalySegmentationPipeline(model=model, image_processor=processor, accelerate=accelerate)
        for accelerate in (True, False)
    )
    recorder = OperatorRecorder()
    pipe._inference_model().captured = CapturedForwards(recorder)
    pictures = [image.numpy() for image in torch.rand(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))]
    for references in (pictures[:1], pictures[1:3], None, pictures[:1]):
        for each in (pipe, plain):
            each.set_references(references)
        for picture in pictures[3:]:
            assert_close(pipe(picture)["anomaly_map"], plain(picture)["anomaly_map"], rtol=0, atol=1e-6)
    assert recorder.replayed >= 6


# --- where passes are not recorded -----------------------------------------------------------------------------------


@torch.no_grad()
def test_without_graphs():
    model = tiny_model()
    fast, recorder = recorded(model)
    labels, features = torch.zeros(1, 48, 48), accelerate_inference(model).encode_image(pixels(1))
    calls = {
        "labels": lambda: fast(pixels(1), labels=labels),
        "positional labels": lambda: fast(pixels(1), labels),
        "a tuple": lambda: fast(pixels(1), return_dict=False),
        "features": lambda: fast(patch_tokens=torch.stack(features[0], dim=1), image_embeds=features[1]),
    }
    for call in calls.values():
        for _ in range(3):
            call()
    with fast.captured.disabled():
        for _ in range(3):
            fast(pixels(1))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            fast(pixels(1))
    assert recorder.recorded == 0


def test_settings_turn_graphs_off():
    model = tiny_model()
    fast, recorder = accelerate_inference(model, Acceleration(cuda_graphs=False)), OperatorRecorder()
    fast.captured = CapturedForwards(recorder)
    for _ in range(3):
        fast(pixels(1))
    assert recorder.recorded == 0
    other = accelerated_or_plain(model, fast, Acceleration())
    assert other is not fast and accelerated_or_plain(model, other) is other


def test_disabling_holds_for_one_thread():
    fast, recorder = recorded(tiny_model())

    def work():
        for _ in range(3):
            fast(pixels(1))

    with fast.captured.disabled():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        before = recorder.replayed
        fast(pixels(1))
    assert recorder.recorded == 1 and recorder.replayed == before


def test_a_cpu_records_nothing():
    fast = accelerate_inference(tiny_model())
    for _ in range(3):
        fast(pixels(1))
    assert not CUDARecorder().takes(pixels(1)) and fast.captured.describe() == []


@pytest.mark.parametrize(
    ("faults", "message"),
    [({"fails": True}, "not permitted when a stream is capturing"), ({"differs": True}, "first results differed")],
)
@torch.no_grad()
def test_a_pass_that_cannot_be_recorded_runs_as_usual(faults, message, monkeypatch):
    warned = []
    monkeypatch.setattr("vcp_clip_hf.cuda_graphs.logger.warning_once", warned.append)
    model = tiny_model()
    fast, recorder = recorded(model, **faults)
    for seed in range(4):
        images = pixels(1, seed=seed)
        same(fast(images), accelerate_inference(model)(images))
    assert recorder.recorded == 1, "it is tried once"
    assert recorder.forgotten == 2, "at the start, and because no graph is left of its memory"
    assert len(warned) == 1 and message in warned[0]


@pytest.mark.parametrize(("fails", "tries"), [(True, 1), ("memory", 2)])
@torch.no_grad()
def test_other_passes_are_recorded_after_a_failure_only_if_it_lacked_memory(fails, tries):
    model = tiny_model()
    fast, recorder = recorded(model, fails=fails)
    for side in (48, 64) * 3:
        same(fast(pixels(1, side)), accelerate_inference(model)(pixels(1, side)))
    assert recorder.recorded == tries


def test_errors_of_inputs_do_not_end_recording():
    fast, recorder = recorded(tiny_model())
    for _ in range(3):
        with pytest.raises(RuntimeError):
            fast(pixels(1), image_embeds=torch.zeros(1, 31))
    for _ in range(2):
        fast(pixels(1))
    assert recorder.recorded == 2 and len(fast.captured.describe()) == 1


@torch.no_grad()
def test_precisions_set_by_their_present_names_are_read():
    fast, recorder = recorded(tiny_model())
    for _ in range(2):
        fast(pixels(1))
    # transformers sets them so for `tf32=True`; `torch.get_float32_matmul_precision` is an error after that
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    former = products.fp32_precision, convolutions.fp32_precision
    try:
        products.fp32_precision, convolutions.fp32_precision = "tf32", "ieee"
        for _ in range(2):
            fast(pixels(1))
    finally:
        products.fp32_precision, convolutions.fp32_precision = former
    assert recorder.recorded == 2


@torch.no_grad()
def test_a_trace_has_the_pass_itself():
    model = tiny_model()
    fast, recorder = recorded(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda images: fast(images).anomaly_map, pixels(1), check_trace=False)
        again = torch.jit.trace(lambda images: fast(images).anomaly_map, pixels(1), check_trace=False)
    for each in (traced, again):
        assert_close(each(pixels(1, seed=1)), model(pixels(1, seed=1)).anomaly_map, rtol=0, atol=1e-5)
    assert recorder.recorded == 0


def test_errors_of_a_call_are_those_without_graphs():
    fast, _ = recorded(tiny_model())
    for _ in range(3):
        with pytest.raises(ValueError, match="multiples of patch_size=8"):
            fast(pixels(1, 50))
        with pytest.raises(ValueError, match="pixel_values requires gradients"):
            fast(pixels(1).requires_grad_())
        with pytest.raises(TypeError, match="color"):
            fast(pixels(1), color="red")
    assert fast.captured.describe() == []


def test_inference_mode_does_not_matter():
    model = tiny_model()
    fast, recorder = recorded(model)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            same(fast(pixels(1)), accelerate_inference(model)(pixels(1)))
    assert recorder.replayed == 3


def test_threads_take_turns():
    model = tiny_model()
    fast, recorder = recorded(model)
    expected = [accelerate_inference(model)(pixels(1, seed=seed)) for seed in range(4)]
    problems = []

    def work(seed):
        try:
            for _ in range(10):
                same(fast(pixels(1, seed=seed)), expected[seed])
        except AssertionError as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and recorder.recorded == 1


def test_copies_and_pickles_have_no_graphs():
    captured = CapturedForwards()
    assert copy.deepcopy(captured) is not captured
    assert pickle.loads(pickle.dumps(captured)).describe() == []
