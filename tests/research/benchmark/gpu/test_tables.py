"""Lines of the terminal and tables in Markdown."""

from examples.research.benchmark.gpu.tables import line_of_message, report_in_markdown


MACHINE = {"machine": {"cpu": "C", "gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "none": None}}
SPEED = {
    "table": "speed",
    "device": "NVIDIA H200",
    "batch_size": 16,
    "way": "accelerated, without graphs",
    "encoder_ms": 2.34,
    "forward_ms": 2.5,
    "ms_per_image": 2.61,
    "floor_ms_per_image": 1.31,
    "times_floor": 1.99,
    "product_tflops": 773.0,
    "working_memory_bytes": 3 * 2**20,
}
KERNELS = {
    "table": "kernels",
    "ms_per_image": 2.4,
    "kernel_ms_per_image": 2.3,
    "kernels": 700,
    "kinds_ms_per_image": {"linear layers": 1.15, "GELU": 0.18},
    "largest_of_the_rest": {"upsample<a|b>": 0.01},
}
PASSED = {"table": "equality", "check": "test_a[cuda]", "passed": True, "largest_difference": 2e-6}
FAILED = {"table": "equality", "check": "test_b[cuda]", "passed": False, "why": "assert 1 <= 0"}
TRAINING = {
    "table": "training",
    "device": "NVIDIA H200",
    "dtype": "bfloat16",
    "batch_size": 8,
    "way": "training, batch of 8",
    "ms_per_image": 12.4,
    "images_per_second": 80.0,
}


def test_lines():
    assert line_of_message(SPEED) == (
        "speed | batch: 16 | way: accelerated, without graphs | encoder alone: 2.34 | whole forward: 2.50"
        " | with post-processing: 2.61 | x floor: 1.99 | MiB beyond the weights: 3"
    )
    assert line_of_message(MACHINE) == "cpu C, gpu NVIDIA H200, driver 580.1, cuda 13.0"
    assert (
        line_of_message({"left_out": "float8: all", "why": "it needs a GPU"})
        == "left out: float8: all (it needs a GPU)"
    )
    assert line_of_message({"failed": "speed", "why": "E"}) == "failed: speed (E)"
    assert line_of_message(TRAINING).startswith(
        "training | NVIDIA H200 | bfloat16 | batch 8 | training, batch of 8: 12.4 ms"
    )


def test_the_report_has_every_table_with_rows():
    messages = [MACHINE, PASSED, SPEED, {"batch_size": 1, **KERNELS}, {"batch_size": 16, **KERNELS}, TRAINING]
    goals = [{"goal": "g", "target": "4.00 ms", "measured": "3.90 ms", "way": "accelerated", "reached": True}]
    text = report_in_markdown(messages, goals, "python -m x | y", "2026-12-01", "m, 518 x 518 pixels")
    assert text.startswith(
        "m, 518 x 518 pixels, measured on 2026-12-01 on cpu C, gpu NVIDIA H200, driver 580.1, cuda 13.0: "
    )
    lines = text.splitlines()
    assert "| g | 4.00 ms | 3.90 ms | accelerated | yes |" in lines
    assert "**Checks of results on this device**: 1 of 1 passed; largest difference 2.0e-06." in lines
    assert "| 16 | accelerated, without graphs | 2.34 | 2.50 | 2.61 | 1.99 | 3 |" in lines
    assert "| batch | 1 | 16 |" in lines and "| linear layers | 1.150 | 1.150 |" in lines
    assert "| attention |  |  |" in lines and "773 TFLOP/s; 1.31 ms an image." in text
    assert "Largest kernels of the rest: <code>upsample&lt;a&#124;b&gt;</code>." in lines
    assert "| bfloat16 | 8 | training, batch of 8 | 12.4 | 80.00 |" in lines
    assert "x accelerated" not in text and "left out" not in text and "Cost of a CUDA graph" not in text


def test_what_is_missing_or_failed_is_named():
    messages = [PASSED, FAILED, {"left_out": "files", "why": "no time was left"}, {"failed": "speed", "why": "a|b"}]
    lines = report_in_markdown(messages, [], "c", "d").splitlines()
    assert lines[0] == "a model, measured on d on an unknown machine: `c`"
    assert "The goals are for another model or device." in lines
    assert "**Checks of results on this device**: 1 of 2 passed; largest difference 2.0e-06." in lines
    assert r"| test_b\[cuda\] | no | assert 1 &lt;= 0 |" in lines
    assert lines[-2:] == ["- left out: files (no time was left)", "- failed: speed (a&#124;b)"]
