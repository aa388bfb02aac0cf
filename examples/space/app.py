"""A web page that finds defects in pictures (Gradio; `pip install "vcp-clip-hf[demo]"`).

    python examples/space/app.py                     # the embedded checkpoint, on http://127.0.0.1:7860
    python examples/space/app.py --model vcp-clip-visa --host 0.0.0.0 --port 8000

The model is loaded once. Each picture is segmented once: threshold, regions and the verdict are computed from the
map, which is kept for the visitor. Everything that belongs to a visitor (picture, thresholds, words) stays with the
visitor.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


# Gradio reads this when it is imported: send no statistics
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from answers import message
from curl_commands import start_commands
from inspection import MAX_FILES, SHOWN_PICTURES, Inspector, Session, images_among
from PIL import Image
from style import ACCESS, STYLE
from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline
from vcp_clip_hf.generator import render_sample


__all__ = ["EXAMPLES", "build_app", "example_images", "launch_options", "main"]

# Product family, defect and description of the example pictures
EXAMPLES = (
    ("perforated_sheet", "auto", "Perforated sheet, a hole is missing"),
    ("saw_blade", "auto", "Saw blade, broken teeth"),
    ("cardboard", "auto", "Cardboard, glue"),
    ("marble", "auto", "Marble, foreign patch"),
    ("cast_block", "auto", "Casting, dent"),
    ("spring", None, "Spring, good"),
)
_EXAMPLE_SEED, _EXAMPLE_SIZE = 7, 384
_SESSIONS, _SECONDS_KEPT = 64, 3600
# One forward pass at a time, for all visitors
_MODEL_CALL = {"concurrency_limit": 1, "concurrency_id": "model"}
# The server's copy of an uploaded file has a name without special characters
_WITH_NAME = "(session, picture) => [session, picture, picture?.orig_name ?? null]"
_MAP_CALL = {
    "concurrency_limit": 2,
    "concurrency_id": "map",
    "trigger_mode": "always_last",
    "show_progress": "hidden",
}


def build_app(
    model: str | AnomalySegmentationPipeline = EMBEDDED_CHECKPOINT, device: str | None = None, dtype: str = "auto"
) -> gr.Blocks:
    """
    Build the page; start it with `build_app(...).launch(**launch_options())`.

    Args:
        model (`str` or [`AnomalySegmentationPipeline`]): checkpoint (folder or Hub repository), or a loaded pipeline.
        device (`str`, *optional*): device of the model, such as cpu or cuda; the first accelerator by default.
        dtype (`str`, *optional*, defaults to `"auto"`): dtype of the model.

    Raises:
        OSError: the checkpoint cannot be found.
    """
    if isinstance(model, str):
        source = model
        name = "vcp-clip-tiny (embedded)" if model == EMBEDDED_CHECKPOINT else model
        try:
            model = pipeline("anomaly-segmentation", model=model, device=device, dtype=dtype)
        except OSError as error:
            raise OSError(f"{model!r} could not be loaded. {error}") from error
        # the first call makes the accelerated copy of the model, which all visitors then share
        model(Image.new("RGB", (model.image_processor.size.width, model.image_processor.size.height)))
    else:
        name = source = model.model.name_or_path
    inspector = Inspector(model)
    examples = tempfile.TemporaryDirectory(prefix="vcp-clip-examples-")
    with gr.Blocks(
        title="VCP-CLIP: find defects", analytics_enabled=False, delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT)
    ) as app:
        app.examples_folder = examples  # exists as long as the page
        pairs = example_images(examples.name)
        gr.Markdown(f"# Find defects\nZero-shot, with VCP-CLIP. Checkpoint: `{Path(name).name}`.")
        session = gr.State(inspector.new_session(), time_to_live=_SECONDS_KEPT, delete_callback=Session.close)
        threshold, view = _picture_tab(inspector, session, [path for path, _ in pairs], start_commands(source, dtype))
        _batch_tab(inspector, session)
        _calibration_tab(inspector, session, threshold, view)
        _words_tab(inspector, session, view)
        app.load(None, js=ACCESS.replace("EXAMPLE_NAMES", json.dumps([text for _, text in pairs])))
    app.queue(max_size=32, api_open=False)
    return app


# --- tabs -----------------------------------------------------------------------------------------------------------


def _picture_tab(
    inspector: Inspector, session: gr.State, examples: Sequence[str], start: str
) -> tuple[gr.Slider, list]:
    """Add the tab for one picture; return its threshold slider, and the outputs of `Inspector.view`."""
    with gr.Tab("Picture"), gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            picture = gr.Image(
                label="Picture", image_mode=None, type="filepath", sources=["upload", "clipboard"], height=320
            )
            name = gr.Textbox(visible=False)
            picture.preprocess = _sent_file  # for a subclass, Gradio would write a .pyi file beside this one
            gr.Examples(
                [[path] for path in examples],
                picture,
                label="Examples (generated)",
                cache_examples=False,
                elem_id="examples",
            )
        with gr.Column(min_width=300):
            answer = gr.HTML(
                message("Choose a picture, or one of the examples."), elem_id="answer", elem_classes="answer"
            )
            slider = gr.ImageSlider(
                label="Picture | heat map", type="pil", format="jpeg", interactive=False, elem_id="slider"
            )
            known = inspector.pipe.image_processor.threshold
            with gr.Row():
                threshold = gr.Slider(
                    0,
                    1,
                    0.5 if known is None else known,
                    step=0.001,
                    label="Threshold",
                    info="Pixels at or above it are abnormal.",
                    scale=3,
                    min_width=240,
                    elem_id="threshold",
                )
                min_area = gr.Number(
                    0,
                    label="Smallest region",
                    info="In pixels.",
                    precision=0,
                    minimum=0,
                    scale=1,
                    min_width=120,
                    elem_id="min-area",
                )
            scale = gr.Image(
                label="Anomaly map, fixed scale 0 to 1",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="map",
            )
            regions = gr.HTML(elem_id="regions")
            commands = _http_section(start)
    view = [session, answer, slider, scale, regions, commands]
    picture.change(inspector.segment, [session, picture, name], view, js=_WITH_NAME, **_MODEL_CALL)
    threshold.input(inspector.set_threshold, [session, threshold, min_area], view, **_MAP_CALL)
    min_area.input(inspector.set_min_area, [session, min_area], view, **_MAP_CALL)
    return threshold, view


def _http_section(start: str) -> gr.Code:
    """Add the commands for the same result over HTTP; return the block of those that belong to the picture."""
    shell = {"language": "shell", "interactive": False, "lines": 1, "wrap_lines": True, "show_line_numbers": False}
    with gr.Accordion("The same over HTTP", open=False, elem_id="http"):
        gr.Markdown(
            'The commands need `pip install "vcp-clip-hf[serve]"` and curl 7.76 or later. Run the commands in the folder'
            " of the picture. The server always uses the words of the checkpoint, not those of the tab Words."
        )
        gr.Code(start, label="Start the server", buttons=["copy"], elem_id="start-commands", **shell)
        return gr.Code(label="In another terminal", buttons=["copy"], elem_id="request-commands", **shell)


def _batch_tab(inspector: Inspector, session: gr.State) -> None:
    """Add the tab for many pictures."""
    with gr.Tab("Batch"):
        gr.Markdown(f"Up to {MAX_FILES} pictures. Words and threshold are those of the other tabs.")
        files = _many_files("Pictures")
        start = gr.Button("Segment all", variant="primary")
        answer = gr.HTML(elem_id="batch-answer", elem_classes="answer")
        download = gr.DownloadButton("Download results (zip)", interactive=False, elem_id="download")
        results = gr.HTML()
        gallery = gr.Gallery(
            label=f"Heat maps, the first {SHOWN_PICTURES}",
            columns=4,
            object_fit="contain",
            visible=False,
            elem_id="gallery",
        )

        def batch(session, paths, progress=gr.Progress()):  # noqa: B008
            session, text, rows, pictures, archive = inspector.segment_batch(session, paths, progress)
            button = gr.DownloadButton(value=archive, interactive=archive is not None)
            return session, text, rows, gr.Gallery(value=pictures, visible=bool(pictures)), button

        start.click(batch, [session, files], [session, answer, results, gallery, download], **_MODEL_CALL)


def _calibration_tab(inspector: Inspector, session: gr.State, threshold: gr.Slider, view: list) -> None:
    """Add the tab that sets the threshold from pictures of good parts."""
    with gr.Tab("Calibrate"):
        gr.Markdown(
            "A threshold from pictures of good parts alone, with a stated rate of false alarms. The smallest rate that"
            " n pictures can guarantee is 1 / (n + 1)."
        )
        normals = _many_files("Pictures of good parts")
        rate = gr.Slider(
            0.005, 0.5, 0.05, step=0.005, label="False alarms", info="Share of good parts that are flagged."
        )
        calibrate = gr.Button("Calibrate", variant="primary")
        answer = gr.HTML(elem_id="calibration-answer", elem_classes="answer")
        settings = gr.DownloadButton("Download preprocessor_config.json", interactive=False)

        def calibration(session, paths, rate, progress=gr.Progress()):  # noqa: B008
            session, text, path = inspector.calibrate(session, paths, rate, progress)
            level = gr.skip() if session.threshold is None else min(1.0, session.threshold)
            button = gr.DownloadButton(value=path, interactive=path is not None)
            return session, text, button, level

        calibrate.click(
            calibration, [session, normals, rate], [session, answer, settings, threshold], **_MODEL_CALL
        ).success(inspector.view, session, view, **_MAP_CALL)


def _words_tab(inspector: Inspector, session: gr.State, view: list) -> None:
    """Add the tab that replaces the prompts."""
    config = inspector.pipe.model.config
    with gr.Tab("Words"):
        gr.Markdown(
            "The model asks whether a picture shows a good or a damaged thing. Other words may fit a product better."
            " Give one word per line, or one whole sentence with `{}` for the thing; as many for good as for damaged."
        )
        prompts = [*config.normal_prompts, *config.abnormal_prompts]
        gr.Markdown("The checkpoint's own: " + "; ".join(f"`{prompt}`" for prompt in prompts))
        with gr.Row():
            normal = gr.Textbox(label="Good", lines=2, placeholder="flawless", elem_id="normal-words")
            abnormal = gr.Textbox(label="Damaged", lines=2, placeholder="scratched", elem_id="abnormal-words")
        with gr.Row():
            use = gr.Button("Use these words", variant="primary")
            reset = gr.Button("Reset")
        answer = gr.HTML(elem_id="words-answer", elem_classes="answer")
        for button, act, inputs in (
            (use, inspector.set_words, [session, normal, abnormal]),
            (reset, lambda session: inspector.set_words(session, "", ""), [session]),
        ):
            button.click(act, inputs, [session, answer], **_MODEL_CALL).success(
                inspector.view, session, view, **_MAP_CALL
            )


def _many_files(label: str) -> gr.File:
    """Add an upload of several files, and a button for a whole folder."""
    files = gr.File(label=label, file_count="multiple", height=160)
    folder = gr.UploadButton("Choose a folder", file_count="directory", size="sm")
    folder.upload(images_among, folder, files, queue=False)
    return files


# --- examples and start ---------------------------------------------------------------------------------------------


def example_images(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """Write the examples, products that the embedded checkpoint was not trained on; return (path, description)."""
    pairs = []
    for product, defect, text in EXAMPLES:
        path = Path(folder) / f"{product}.png"
        render_sample(product, _EXAMPLE_SEED, 0, _EXAMPLE_SIZE, defect).image.save(path)
        pairs.append((str(path), text))
    return pairs


def _sent_file(payload: Any) -> str | None:
    """Return the path of an uploaded picture undecoded: the package reads 16 bits and rotation better than Gradio."""
    return None if payload is None else payload.path


def launch_options(host: str | None = None, port: int | None = None, share: bool = False) -> dict[str, Any]:
    """Return the arguments of `launch`: system fonts (none are fetched), bounded uploads and sessions, no links."""
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "head": f"<style>{STYLE}</style>",
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "max_file_size": "64mb",
        "state_session_capacity": _SESSIONS,
        "enable_monitoring": False,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the page from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=os.environ.get("VCP_CLIP_MODEL", EMBEDDED_CHECKPOINT),
        help="folder or Hub repository (default: $VCP_CLIP_MODEL, or the embedded checkpoint)",
    )
    parser.add_argument("--host", help="default: $GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free port from 7860 on")
    parser.add_argument("--device", help="cpu, cuda, ...; default: the first accelerator")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--share", action="store_true", help="public address, through Gradio's servers")
    options = parser.parse_args(arguments)
    try:
        app = build_app(options.model, options.device, options.dtype)
    except OSError as error:
        parser.exit(1, f"error: {error}\n")
    app.launch(**launch_options(options.host, options.port, options.share))


if __name__ == "__main__":
    main()
