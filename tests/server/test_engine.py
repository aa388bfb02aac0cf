"""The model's folder decides between a checkpoint and an exported graph."""

import pytest

from tests.export_run import checkpoint, exported
from vcp_clip_hf.server.engine import is_exported, open_engine
from vcp_clip_hf.server.exported_engine import ExportedEngine
from vcp_clip_hf.server.pipeline_engine import PipelineEngine


def test_the_folder_decides():
    assert is_exported(exported().folder) and not is_exported(checkpoint())
    assert isinstance(open_engine(exported().folder, num_threads=1), ExportedEngine)
    engine = open_engine(str(checkpoint()), device="cpu", dtype="float32")
    assert isinstance(engine, PipelineEngine) and engine.describe()["device"] == "cpu"
    assert engine.describe()["model"] == checkpoint().name


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("checkpoint", {"num_threads": 2}, "num_threads=2 has no effect on a checkpoint"),
        ("checkpoint", {"providers": ("GPU",)}, r"providers=\('GPU',\) has no effect on a checkpoint"),
        ("export", {"device": "cuda"}, "device='cuda' has no effect on an exported graph"),
        ("export", {"dtype": "bfloat16"}, "dtype='bfloat16' has no effect on an exported graph"),
    ],
)
def test_arguments_of_the_other_kind_are_refused(model, arguments, message):
    folder = checkpoint() if model == "checkpoint" else exported().folder
    with pytest.raises(ValueError, match=message):
        open_engine(folder, **arguments)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises((OSError, ValueError), match="nothing"):
        open_engine(tmp_path / "nothing")
