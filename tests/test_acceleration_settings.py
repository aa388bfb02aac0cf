"""The settings of the accelerated copy, and where they are refused."""

import pytest
import torch

from tests.common import tiny_model
from tests.methods.common import tiny_method
from vcp_clip_hf import (
    Acceleration,
    AnomalySegmentationPipeline,
    VCPCLIPImageProcessor,
    accelerate_inference,
    evaluate,
)
from vcp_clip_hf.accelerated_inference import accelerated_or_plain
from vcp_clip_hf.acceleration_settings import precision_name, weights_and_settings
from vcp_clip_hf.pipeline_inputs import CallText
from vcp_clip_hf.server.pipeline_engine import PipelineEngine
from vcp_clip_hf.thresholds import UNRECORDED, differing_settings
from vcp_clip_hf.version import EMBEDDED_CHECKPOINT


FLOAT8 = Acceleration(float8=True)


def test_an_argument_means_settings():
    assert Acceleration.of(True) == Acceleration() and Acceleration.of(False) is None
    assert Acceleration.of(FLOAT8) is FLOAT8
    with pytest.raises(TypeError, match="accelerate=1 must be True, False or Acceleration"):
        Acceleration.of(1)
    with pytest.raises(TypeError, match=r"settings=True must be Acceleration\(\.\.\.\), or be left out"):
        accelerate_inference(tiny_model(), True)


def test_names_of_precisions():
    assert weights_and_settings("float8") == ("bfloat16", FLOAT8)
    assert weights_and_settings("auto") == ("auto", Acceleration())
    assert precision_name(torch.bfloat16, FLOAT8) == "float8"
    assert precision_name(torch.bfloat16, Acceleration()) == precision_name(torch.bfloat16, None) == "bfloat16"


def test_float8_is_refused_on_a_cpu_before_anything_is_computed():
    model = tiny_model().bfloat16()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    calls = {
        "pipeline": lambda: AnomalySegmentationPipeline(model=model, image_processor=processor, accelerate=FLOAT8),
        "evaluation": lambda: evaluate(model, processor, {"parts": []}, accelerate=FLOAT8),
        "server": lambda: PipelineEngine.open(EMBEDDED_CHECKPOINT, "cpu", "float8"),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="float8 needs a model in bfloat16 on an NVIDIA GPU"):
            call()


def test_thresholds_record_whether_they_were_measured_in_float8():
    model = tiny_model()
    pipe = AnomalySegmentationPipeline(model=model, image_processor=VCPCLIPImageProcessor.for_model(model.config))
    call = (CallText(None, None), None, None, None, None)
    plain = pipe.conditions(*call)
    pipe.accelerate = FLOAT8
    in_float8 = pipe.conditions(*call)
    assert differing_settings({"settings": plain}, in_float8) == {"float8": (False, True)}
    assert (plain["dtype"], in_float8["dtype"]) == ("float32", "float8")
    older = {name: value for name, value in plain.items() if name not in UNRECORDED}
    assert differing_settings({"settings": older}, plain) == {}
    assert differing_settings({"settings": older}, in_float8) == {"float8": (False, True)}


def test_float8_is_refused_by_other_methods():
    method = tiny_method("winclip")
    assert accelerated_or_plain(method, settings=Acceleration()) is method
    with pytest.raises(ValueError, match=r"float8=True is for VCP-CLIP, not for WinCLIPModel\. Leave it out\."):
        accelerated_or_plain(method, settings=FLOAT8)
