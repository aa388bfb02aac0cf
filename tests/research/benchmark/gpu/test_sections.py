"""The sections on a CPU with a tiny model: every row that does not need a GPU, and the names of those that do."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch

from examples.research.benchmark.__main__ import make_parser
from examples.research.benchmark.gpu import sections
from examples.research.benchmark.gpu.equality import equality_on_the_device
from examples.research.benchmark.gpu.kernels import KINDS
from examples.research.benchmark.gpu.measurement import Measurement
from examples.research.benchmark.gpu.run import measured_options
from examples.research.benchmark.gpu.sections import SECTIONS, Section, measure_sections, sections_of
from examples.research.benchmark.gpu.tables import MISSING
from examples.research.benchmark.gpu.ways import GRAPHS, NO_GRAPHS, PLAIN, LeftOut, Ways
from examples.research.benchmark.inference import PARTS
from tests.common import pixels, tiny_model
from tests.operator_recorder import OperatorRecorder


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    given = make_parser().parse_args(["--what", "gpu", "--quick", "--devices", "cpu", "--batch_sizes", "1", "2"])
    return measured_options(given, str(tmp_path_factory.mktemp("tiny")))


def measured(options, *names, limit=600.0):
    """Run sections in this process; return their rows and other messages."""
    messages = []
    connection = SimpleNamespace(send=messages.append)
    measure_sections(connection, dict.fromkeys(names, limit), time.time() + 600, options)
    assert "machine" in messages[0]
    assert [each["begin"] for each in messages if "begin" in each] == list(names)
    assert [each["end"] for each in messages if "end" in each] == list(names)
    return [each for each in messages if "table" in each], [each for each in messages if MISSING & each.keys()]


def test_speed(options, monkeypatch):
    monkeypatch.setattr("examples.research.benchmark.gpu.speed._MAX_ROUNDS", 3)  # the limit would allow more
    rows, missing = measured(options, "speed")
    assert [(each["batch_size"], each["way"]) for each in rows] == [
        (1, PLAIN),
        (1, NO_GRAPHS),
        (1, "reference"),
        (2, PLAIN),
        (2, NO_GRAPHS),
    ]
    for row in rows:
        assert row["table"] == "speed" and row["dtype"] == "bfloat16" and row["rounds"] == 3
        assert row["times_floor"] == pytest.approx(row["ms_per_image"] / row["floor_ms_per_image"])
        if row["way"] != "reference":
            assert row["encoder_ms"] > 0 and row["forward_ms"] > 0
    assert [each["left_out"] for each in missing] == [f"speed: batch of {size}, {GRAPHS}" for size in (1, 2)]
    assert {each["why"] for each in missing} == {"it needs a GPU"}


def test_parts_kernels_and_deviation(options):
    rows, missing = measured(options, "deviation", "kernels", "parts", "graphs")
    tables = {name: [row for row in rows if row["table"] == name] for name in ("deviation", "kernels", "parts")}
    exact = tables["deviation"][0]
    assert exact["what"] == "bfloat16 beside float32, plain"
    assert 0 < exact["map_deviation_mean"] < exact["map_deviation_max"] < 0.1 and not exact["equal"]
    assert [each["batch_size"] for each in tables["kernels"]] == [2, 1]
    assert KINDS.keys() < tables["kernels"][0]["kinds_ms_per_image"].keys()
    for row in tables["parts"]:
        assert list(row["shares"]) == list(PARTS) and sum(row["shares"].values()) == pytest.approx(1)
    assert [each["left_out"].split(": ")[0] for each in missing] == ["deviation"] * 3 + ["graphs"]


@pytest.mark.slow
def test_training_and_files(options):
    rows, missing = measured(options, "training", "files")
    training = [row for row in rows if row["table"] == "training"]
    batch, accumulated = training[0], next(row for row in training if "accumulated" in row["way"])
    assert accumulated["times_batch"] == pytest.approx(accumulated["ms_per_image"] / batch["ms_per_image"])
    assert "times_batch" not in batch
    files = [row for row in rows if row["table"] == "files"]
    assert any("scores only" in row["way"] and row["share_of_model_rate"] > 0 for row in files) and not missing


def test_what_needs_a_gpu_is_named(options):
    rows, missing = measured(options, "float8", "compile_pointwise", "attention")
    assert not rows and [each["left_out"] for each in missing] == [
        "float8: all",
        "compile_pointwise: all",
        "attention: all",
    ]


def test_without_time_what_is_left_out_is_named(options):
    rows, missing = measured(options, "speed", "parts", limit=0.0)
    assert not rows
    assert [each["left_out"] for each in missing] == [
        f"{name}: batch of {size}" for name in ("speed", "parts") for size in (1, 2)
    ]


def test_a_section_that_fails_does_not_end_the_others(options, monkeypatch):
    def fails(run):
        raise RuntimeError("CUDA error: out of luck\nand more lines")

    monkeypatch.setitem(sections.SECTIONS, "speed", Section(fails, 9, 9))
    rows, missing = measured(options, "speed", "parts")
    assert missing == [{"failed": "speed", "why": "RuntimeError: CUDA error: out of luck"}]
    assert {row["table"] for row in rows} == {"parts"}


def test_a_warning_of_the_package_is_reported_once(options, monkeypatch):
    def warns(run):
        for _ in range(2):
            logging.getLogger("vcp_clip_hf.cuda_graphs").warning("A pass runs\nas usual.")
        logging.getLogger("elsewhere").warning("Something else.")

    monkeypatch.setitem(sections.SECTIONS, "speed", Section(warns, 9, 9))
    rows, missing = measured(options, "speed")
    assert not rows and missing == [{"warned": "speed", "why": "A pass runs as usual."}]


def test_warnings_of_others_stay_where_they_are(options):
    messages = []
    run = Measurement(options, messages.append, time.time() + 60)
    logger = logging.getLogger("vcp_clip_hf.cuda_graphs")
    with run.reported_warnings():
        logger.info("No warning.")
    logger.warning("Later.")
    assert messages == []


def test_sections_of_a_command_line():
    def of(*arguments):
        return sections_of(make_parser().parse_args(["--what", "gpu", *arguments]))

    usual = [name for name in SECTIONS if name not in ("attention", "torch.compile")]
    assert list(of()) == usual and list(of("--quick")) == usual
    assert of("--quick")["speed"] < of()["speed"]
    assert list(of("--compile", "--attention", "cudnn")) == list(SECTIONS)
    assert list(of("--sections", "parts", "speed")) == ["speed", "parts"]


# --- ways ------------------------------------------------------------------------------------------------------------


def test_ways_of_a_cpu():
    ways = Ways(tiny_model())
    images = pixels(1)
    with torch.no_grad():
        plain, fast = (ways.get(name).forward(images).anomaly_map for name in (PLAIN, NO_GRAPHS))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    with pytest.raises(LeftOut, match="needs a GPU"):
        ways.get(GRAPHS)


@torch.no_grad()
def test_a_way_with_graphs_has_a_graph_of_the_batch(monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.cuda_graphs.CUDARecorder", OperatorRecorder)
    way = Ways(tiny_model()).get(NO_GRAPHS)
    for _ in range(3):
        way.forward(pixels(1))
    way.graphs = True
    with pytest.raises(RuntimeError, match="no graph was captured for a batch of 1"):
        way.check_graph(pixels(1))  # without graphs, nothing was recorded
    for _ in range(3):
        way.network(pixels(1))
    way.check_graph(pixels(1))
    with pytest.raises(RuntimeError, match="batch of 2"):
        way.check_graph(pixels(2))


# --- equality --------------------------------------------------------------------------------------------------------

CHECKS = """
import time
import pytest

@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_good(device, request):
    assert device == "cpu"
    request.node.user_properties.append(("largest_difference", 0.25))

@pytest.mark.parametrize("device", ["cpu"])
def test_bad(device):
    assert device == "other"

@pytest.mark.parametrize("device", ["cpu"])
def test_left_out(device):
    pytest.skip("no such thing")

@pytest.mark.parametrize("device", ["cpu"])
def test_compiled(device):
    assert False

@pytest.mark.parametrize("device", ["cpu"])
def test_slow(device):
    time.sleep(0.3)

@pytest.mark.parametrize("device", ["cpu"])
def test_last(device):
    pass
"""


@pytest.mark.parametrize("limit", [60.0, 0.0])
def test_checks_are_rows(options, tmp_path, monkeypatch, limit):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    checks = tmp_path / f"test_checks_within_{limit:.0f}_seconds.py"
    checks.write_text(CHECKS)
    messages = []
    run = Measurement(options, messages.append, time.time() + 60)
    run.begin("equality", limit)
    equality_on_the_device(run, checks)
    good = {"table": "equality", "check": "test_good[cpu]", "passed": True, "largest_difference": 0.25}
    if not limit:
        assert messages[1:] == [
            {"left_out": "equality: checks from test_bad[cpu] on", "why": "no time was left"},
            good,
        ]
        return
    assert messages[1:] == [
        good,
        {
            "table": "equality",
            "check": "test_bad[cpu]",
            "passed": False,
            "why": "AssertionError: assert 'cpu' == 'other'",
        },
        {"left_out": "equality: test_left_out[cpu]", "why": "Skipped: no such thing"},
        {"table": "equality", "check": "test_slow[cpu]", "passed": True},
        {"table": "equality", "check": "test_last[cpu]", "passed": True},
    ]


def test_checks_that_do_not_run_are_an_error(options, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    checks = tmp_path / "test_checks_that_do_not_run.py"
    checks.write_text("import no_such_module")
    run = Measurement(options, lambda message: None, time.time() + 60)
    run.begin("equality", 60.0)
    with pytest.raises(RuntimeError, match=r"ran no test: .*No module named 'no_such_module'"):
        equality_on_the_device(run, checks)
