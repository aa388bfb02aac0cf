import numpy as np
import pytest


pytest.importorskip("sklearn.metrics")
pytest.importorskip("skimage.measure")

from examples.research import benchmark_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    maps, masks = benchmark_metrics.make_images(images=5, size=64)
    assert maps.dtype == np.float32 and 0 <= maps.min() < maps.max() <= 1
    assert masks.any(axis=(1, 2)).sum() == 3
    np.save(folder / "maps.npy", maps)
    np.save(folder / "masks.npy", masks)
    return folder


def test_the_methods_agree(folder):
    reference, _ = benchmark_metrics.run_reference(folder, as_the_authors=False)
    as_the_authors, _ = benchmark_metrics.run_reference(folder, as_the_authors=True)
    assert as_the_authors == reference
    exact, seconds = benchmark_metrics.run_package(folder, "exact")
    assert exact["values"] == pytest.approx(reference["values"], abs=1e-9)
    assert set(seconds) == {"add", "compute"}
    streaming, _ = benchmark_metrics.run_package(folder, "streaming")
    for name, value in reference["values"].items():
        lower, upper = streaming["bounds"][name]
        assert lower <= value <= upper, name


def test_the_program_prints_both_tables(monkeypatch, capsys):
    # in this process: the imports of new processes would take longer than the work
    monkeypatch.setattr(benchmark_metrics, "measure_in_a_process", benchmark_metrics.measure_method)
    benchmark_metrics.main(["--images", "4", "--size", "48", "--repeat", "1"])
    output = capsys.readouterr().out
    assert "| exact |" in output and "| pixel_pro_200 |" in output
