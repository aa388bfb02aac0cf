"""torch.compile and torch.export: no graph breaks, no second compilation, the same maps."""

import pytest
import torch

from tests.common import pixels, tiny_hybrid, tiny_model


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def check(model, backend: str, dynamic: bool) -> None:
    """A graph that breaks, or that is compiled again for another batch where sizes are open, is an error."""
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    compiled_maps, images = [], []
    for batch_size in (2, 3) if dynamic else (2, 2):
        images.append(pixels(batch_size))
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled_maps.append(compiled(images[-1]).anomaly_map)
    for batch, anomaly_map in zip(images, compiled_maps, strict=True):
        torch.testing.assert_close(anomaly_map, model(batch).anomaly_map, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph(dynamic):
    check(tiny_model(), "eager", dynamic)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_graph_of_a_tower_with_a_stem_its_branch_and_its_features(dynamic):
    model = tiny_hybrid(use_stem_branch=True)
    check(model, "eager", dynamic)
    torch._dynamo.reset()
    images = pixels(2)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="eager")
        outputs, expected = (each(images, output_hidden_states=["stem", 2]) for each in (compiled, model))
    for name in ("anomaly_map", "stem_map", "stem_features"):
        torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.hidden_states[2], expected.hidden_states[2], atol=1e-5, rtol=0)


def test_one_graph_without_text_that_depends_on_the_image():
    model = tiny_model(use_pre_vcp=False)
    images = pixels(2)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images).anomaly_map
        torch.testing.assert_close(compiled, model(images).anomaly_map, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor(dynamic):
    check(tiny_model(), "inductor", dynamic)


def test_a_loss_and_its_gradients_in_one_graph():
    model, images, labels = tiny_model(), pixels(2), torch.zeros(2, 48, 48)
    expected = model(images, labels=labels).loss
    expected.backward()
    gradient = model.deep_prompts.embeddings.grad.clone()
    model.zero_grad()
    loss = torch.compile(model, fullgraph=True, backend="eager")(images, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.deep_prompts.embeddings.grad, gradient, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_export_to_a_program_with_any_number_of_images():
    model = tiny_model()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (), {"pixel_values": pixels(2)}, dynamic_shapes={"pixel_values": {0: batch}}
    ).module()
    for batch_size in (1, 3):
        images = pixels(batch_size)
        exported, expected = program(pixel_values=images), model(images)
        torch.testing.assert_close(exported.anomaly_map, expected.anomaly_map, atol=1e-5, rtol=0)
        assert exported.vcp_map.shape == (batch_size, 48, 48)
