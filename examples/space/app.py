"""A web page that finds defects on pictures (Gradio; `pip install "vcp-clip-hf[demo]"`).

python examples/space/app.py                        # the embedded checkpoint, on http://127.0.0.1:7860
python examples/space/app.py --model vcp-clip-visa --host 0.0.0.0 --port 8000

The model is loaded once. A picture is segmented once: threshold, regions and the verdict are read from the map that is
kept for the visitor. Everything that belongs to a visitor (picture, thresholds, words) stays with the visitor.
"""

import argparse
import copy
import html
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# before gradio reads it: no statistics are sent anywhere
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import numpy as np
from PIL import Image
from transformers import pipeline

from vcp_clip_hf import EMBEDDED_CHECKPOINT, AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.data.synthetic_defects import render_sample
from vcp_clip_hf.image_files import IMAGE_SUFFIXES
from vcp_clip_hf.image_loading import load_image
from vcp_clip_hf.prediction import predict_files, read_predictions, write_csv
from vcp_clip_hf.visualization import add_color_bar, draw_boxes, heatmap


__all__ = ["EXAMPLES", "Inspector", "Session", "build_app", "example_images", "launch_options", "main"]

EXAMPLES = (
    ("perforated_sheet", "auto", "Perforated sheet, a hole is missing"),
    ("saw_blade", "auto", "Saw blade, broken teeth"),
    ("cardboard", "auto", "Cardboard, glue"),
    ("marble", "auto", "Marble, foreign patch"),
    ("cast_block", "auto", "Casting, dent"),
    ("spring", None, "Spring, good"),
)
_EXAMPLE_SEED, _EXAMPLE_SIZE = 7, 384

MAX_MEGAPIXELS = 24
MAX_FILES = 200
_SHOWN_SIDE = 1280  # pictures on the page; maps, masks and regions keep the original size
_SHOWN_REGIONS, _SHOWN_PICTURES = 50, 24
_BATCH_SIZE = 8
_SESSIONS, _SECONDS_KEPT = 64, 3600

# what a visitor can cause; anything else is a defect of the program and goes to its log
_MISTAKES = (ValueError, TypeError, OSError, Image.DecompressionBombError)

# in the page's head: as `css`, Gradio would confine it to the inside of its container
_STYLE = """
.gradio-container { max-width: 1240px !important; width: 100%; margin: 0 auto !important; }
.message { padding: 10px 14px; border-left: 6px solid #6b7280; background: var(--background-fill-secondary);
  overflow-wrap: anywhere; }
.message.normal { border-color: #15803d; }
.message.anomalous, .message.error { border-color: #b91c1c; }
.message.warning { border-color: #b45309; }
/* Gradio lays label and buttons over the picture, where they would hide the end of the colour bar */
#map .image-container, #slider .slider-wrap { padding-top: 40px; }
.scroll { overflow: auto; max-height: 420px; }
.scroll table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.scroll table caption { text-align: left; padding: 4px 0; }
.scroll table th, .scroll table td { padding: 4px 8px !important; border-width: 0 0 1px !important;
  text-align: right !important; white-space: nowrap; }
.scroll table th, .scroll table td { border-color: var(--border-color-primary) !important; }
.scroll table, .scroll thead, .scroll tbody, .scroll tr { border: 0 !important; }
.scroll table .text { text-align: left !important; white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
.html-container { padding: 0 !important; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
:focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
@media (max-width: 640px) { .gradio-container .fillable { padding: 12px !important; } }
"""
# What Gradio leaves out for those who use keyboard or screen reader: the handle between picture and heat map takes the
# focus and follows the arrow keys, examples have names, answers are read out.
_ACCESS = """
() => {
  const names = EXAMPLE_NAMES;
  const moveBy = (handle, step) => {
    const box = handle.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    const send = (target, type, to) => target.dispatchEvent(
      new MouseEvent(type, {bubbles: true, cancelable: true, view: window, clientX: to, clientY: y}));
    send(handle, "mousedown", x); send(window, "mousemove", x + step); send(window, "mouseup", x + step);
  };
  const improve = () => {
    const handle = document.querySelector('#slider [data-testid="slider"]');
    if (handle && !handle.hasAttribute("tabindex")) {
      const frame = handle.parentElement;
      const tell = () => {
        const box = handle.getBoundingClientRect(), around = frame.getBoundingClientRect();
        const part = (box.left + box.width / 2 - around.left) / around.width;
        handle.setAttribute("aria-valuenow", Math.round(100 * Math.min(1, Math.max(0, part))));
      };
      const facts = {tabindex: 0, role: "slider", "aria-label": "From where on the heat map is shown, in percent",
                     "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 50};
      for (const [name, value] of Object.entries(facts)) handle.setAttribute(name, value);
      handle.addEventListener("keydown", (event) => {
        const width = frame.clientWidth;
        const step = {ArrowLeft: -width / 20, ArrowRight: width / 20, Home: -width, End: width}[event.key];
        if (step === undefined) return;
        event.preventDefault();
        moveBy(handle, step);
        tell();
      });
    }
    const texts = {"#slider img": ["The picture", "The picture under its heat map"], "#map img": ["The anomaly map"]};
    for (const [where, what] of Object.entries(texts))
      document.querySelectorAll(where).forEach((image, number) => {
        if (image.alt !== what[number]) image.alt = what[number];
      });
    document.querySelectorAll("#examples .gallery-item").forEach((button, number) => {
      if (!button.hasAttribute("aria-label")) {
        button.setAttribute("aria-label", names[number]); button.title = names[number];
      }
    });
    document.querySelectorAll(".answer").forEach((answer) => {
      if (!answer.hasAttribute("role")) answer.setAttribute("role", "status");
    });
  };
  new MutationObserver(improve).observe(document.body, {childList: true, subtree: true});
  improve();
}
"""


@dataclass
class Segmented:
    """A picture and the map that all further answers are read from."""

    name: str
    image: Image.Image
    anomaly_map: np.ndarray
    score: float


@dataclass
class Session:
    """
    What belongs to one visitor.

    Args:
        processor ([`VCPCLIPImageProcessor`]): a copy of the checkpoint's, whose thresholds calibration changes.
        threshold (`float`, *optional*): on the map; None until the checkpoint, a calibration or the visitor gives one.
        min_area (`int`): regions of fewer pixels are dropped.
        prompts (`dict`, *optional*): words instead of the checkpoint's.
        segmented ([`Segmented`], *optional*): the picture that is looked at.
        folder (`str`, *optional*): where results to download are.
    """

    processor: VCPCLIPImageProcessor
    threshold: float | None = None
    min_area: int = 0
    prompts: dict[str, list[str]] | None = None
    segmented: Segmented | None = None
    folder: str | None = field(default=None, compare=False)

    def new_folder(self) -> Path:
        """An empty folder; the former one is removed."""
        self.close()
        self.folder = tempfile.mkdtemp(prefix="vcp-clip-app-")
        return Path(self.folder)

    def close(self) -> None:
        """Remove what was written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


class Inspector:
    """
    What the page does, without the page: each method takes and returns plain values.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): shared by all visitors and never changed.
    """

    def __init__(self, pipe: AnomalySegmentationPipeline):
        self.pipe = pipe

    def new_session(self) -> Session:
        """A visitor with the checkpoint's own settings."""
        processor = copy.deepcopy(self.pipe.image_processor)
        return Session(processor, processor.threshold)

    def _pipe_of(self, session: Session) -> AnomalySegmentationPipeline:
        """The shared model with the visitor's thresholds."""
        pipe = copy.copy(self.pipe)
        pipe.image_processor = session.processor
        return pipe

    # --- one picture ------------------------------------------------------------------------------------------------

    def segment(self, session: Session, path: str | None) -> tuple:
        """A picture's path -> `view` of it. The only place where a single picture goes through the model."""
        session.segmented = None
        if path is None:
            return self.view(session)
        try:
            check_size(path)
            image = load_image(path, session.processor.input_range)
            result = self._pipe_of(session)(image, **_options(session))
        except _MISTAKES as error:
            return (session, message(error, "error", [path]), *_NOTHING_TO_SEE)
        session.segmented = Segmented(Path(path).name, image, result["anomaly_map"], result["score"])
        return self.view(session)

    def set_threshold(self, session: Session, threshold: float, min_area: float | None) -> tuple:
        """Slider and smallest region -> `view`, from the kept map."""
        session.threshold = float(threshold)
        return self.set_min_area(session, min_area)

    def set_min_area(self, session: Session, min_area: float | None) -> tuple:
        """Smallest region -> `view`, from the kept map."""
        session.min_area = max(0, int(min_area or 0))
        return self.view(session)

    def read(self, session: Session) -> dict[str, Any]:
        """The pipeline's answer on the kept map with the visitor's threshold; no forward pass."""
        segmented, processor = session.segmented, session.processor
        settings = {} if session.threshold is None else {"threshold": session.threshold}
        if session.threshold is not None and processor.score_mode == "max":
            settings["image_threshold"] = session.threshold  # one scale: the verdict follows the slider
        result = processor.scoring(**settings).result(segmented.anomaly_map, segmented.score)
        return self.pipe.postprocess(
            {"results": {**result, "image": segmented.image, "error": None}},
            heatmap=True,
            regions=session.threshold is not None,
            min_area=session.min_area,
        )

    def view(self, session: Session) -> tuple:
        """-> session, verdict, (picture, picture under its map), map with its colour bar, table of regions."""
        segmented = session.segmented
        if segmented is None:
            return (session, message("Choose a picture, or one of the examples."), *_NOTHING_TO_SEE)
        result = self.read(session)
        regions = result.get("regions", [])
        marked = shown(draw_boxes(result["heatmap"], regions[:_SHOWN_REGIONS]))
        scale = add_color_bar(shown(heatmap(segmented.anomaly_map)))
        return session, verdict(segmented, result), (shown(segmented.image), marked), scale, region_table(result)

    # --- many pictures ----------------------------------------------------------------------------------------------

    def segment_batch(
        self, session: Session, paths: Sequence[str] | None, progress: Callable | None = None
    ) -> tuple[Session, str, str, list, str | None]:
        """-> session, message, table, (picture, caption) pairs, the file to download."""
        paths = images_among(paths)
        try:
            check_count(paths)
        except ValueError as error:
            return session, message(error, "error"), "", [], None
        records, good = [], []
        for path in paths:
            try:
                check_size(path)
                good.append(path)
            except _MISTAKES as error:
                records.append({"image": Path(path).name, "error": without_folders(error, [path])})

        folder = session.new_folder()
        results = folder / "results"
        pipe, options = self._pipe_of(session), {**_options(session), "min_area": session.min_area}
        if session.threshold is not None:
            options.update(threshold=session.threshold, regions=True)
            if session.processor.score_mode == "max":
                options["image_threshold"] = session.threshold
        try:
            for start in range(0, len(good), _BATCH_SIZE):
                if progress is not None:
                    progress((start, len(good)), desc="Segmenting")
                part = good[start : start + _BATCH_SIZE]
                predict_files(pipe, part, results, batch_size=_BATCH_SIZE, progress=False, **options)
        except _MISTAKES as error:
            return session, message(error, "error", paths), "", [], None
        for record in read_predictions(results) if good else []:
            if "error" in record:
                record["error"] = without_folders(record["error"], [record["image"]])
            records.append({**record, "image": Path(record["image"]).name})

        results.mkdir(exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (results / "predictions.jsonl").write_text(lines, encoding="utf-8")
        write_csv(records, results / "predictions.csv")
        archive = folder / "vcp-clip-results.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for path in sorted(results.rglob("*")):
                file.write(path, path.relative_to(results))
        pictures = [
            (str(results / record["overlay"]), f"{record['image']}: {record['score']:.3f}")
            for record in records
            if "overlay" in record
        ]
        failed = sum("error" in record for record in records)
        found = sum(record.get("label") == "anomalous" for record in records)
        text = f"{len(records) - failed} segmented, {failed} failed."
        text += f" {found} anomalous." if session.threshold is not None else f" {_NO_THRESHOLD}"
        kind = "warning" if failed or session.threshold is None else "normal"
        return session, message(text, kind), batch_table(records), pictures[:_SHOWN_PICTURES], str(archive)

    # --- calibration and words --------------------------------------------------------------------------------------

    def calibrate(
        self, session: Session, paths: Sequence[str] | None, false_alarm_rate: float, progress: Callable | None = None
    ) -> tuple[Session, str, str | None]:
        """Pictures of good parts -> session with a threshold, message, `preprocessor_config.json` to download."""
        paths = images_among(paths)
        pipe = copy.copy(self.pipe)
        pipe.image_processor = copy.deepcopy(session.processor)  # a failure leaves the visitor's thresholds alone

        def one_by_one() -> Iterable[str]:
            for number, path in enumerate(paths):
                if progress is not None:
                    progress((number, len(paths)), desc="Looking at good parts")
                check_size(path)
                yield path

        try:
            check_count(paths)
            calibration = pipe.calibrate(one_by_one(), false_alarm_rate=false_alarm_rate, **_options(session))
        except _MISTAKES as error:
            return session, message(error, "error", paths), None
        session.processor = pipe.image_processor
        text = calibration.describe() + " It is used on this page from now on."
        if session.processor.score_mode == "max":
            session.threshold = session.processor.threshold
        else:
            text += " It is for verdicts: this checkpoint's scores are no values of the map. Set the slider by eye."
        folder = session.new_folder()
        session.processor.save_pretrained(folder)
        kind = "normal" if calibration.reached else "warning"
        return session, message(text, kind), str(folder / "preprocessor_config.json")

    def set_words(self, session: Session, normal: str, abnormal: str) -> tuple[Session, str]:
        """Words of both states, one a line -> session with them, message. Nothing in both: the checkpoint's own."""
        words = {"normal": lines_of(normal), "abnormal": lines_of(abnormal)}
        former = session.prompts
        session.prompts = words if any(words.values()) else None
        changed = session.prompts != former
        try:
            if not all(words.values()) and any(words.values()):
                raise ValueError("Give words for both states: at least one for good and one for damaged parts.")
            if session.segmented is not None:
                image = session.segmented.image
                result = self._pipe_of(session)(image, **_options(session))
                session.segmented = Segmented(session.segmented.name, image, result["anomaly_map"], result["score"])
            elif session.prompts is not None:
                size = session.processor.size  # nothing to look at yet: only whether the words can be read
                self._pipe_of(session)(Image.new("RGB", (size.width, size.height)), **_options(session))
        except _MISTAKES as error:
            session.prompts = former
            return session, message(error, "error")
        text = "These words are used from now on, on every tab." if session.prompts else "The checkpoint's own words."
        if changed and session.threshold is not None:
            return session, message(f"{text} The threshold was set with other words: calibrate again.", "warning")
        return session, message(text, "normal")


# --- small pieces ---------------------------------------------------------------------------------------------------

_NOTHING_TO_SEE = (None, None, "")
_NO_THRESHOLD = "No verdict: no threshold is known. Calibrate on good parts, or move the slider."


def _options(session: Session) -> dict[str, Any]:
    return {} if session.prompts is None else {"prompts": session.prompts}


def lines_of(text: str | None) -> list[str]:
    """Lines with something in them."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def images_among(paths: Sequence[str] | str | None) -> list[str]:
    """Uploaded files that look like images; a folder brings along whatever else is in it."""
    paths = [paths] if isinstance(paths, str) else list(paths or [])
    return [path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES]


def check_count(paths: Sequence[str]) -> None:
    """
    Raises:
        ValueError: no images, or too many for a web page.
    """
    if not paths:
        raise ValueError(f"No images. Choose files that end in {', '.join(IMAGE_SUFFIXES)}.")
    if len(paths) > MAX_FILES:
        raise ValueError(
            f"{len(paths)} images; this page takes up to {MAX_FILES} at a time. Use `vcp-clip predict` or"
            " `vcp-clip calibrate` for more."
        )


def check_size(path: str) -> None:
    """
    Raises:
        ValueError: not an image, or too large for a web page. Only the file's head is read.
    """
    try:
        with Image.open(path) as picture:
            megapixels = picture.width * picture.height / 1e6
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: the image is far too large for this page ({error}).") from error
    except OSError as error:
        raise ValueError(f"{path}: not an image file that can be read.") from error
    if megapixels > MAX_MEGAPIXELS:
        raise ValueError(
            f"{path}: the image has {megapixels:.0f} megapixels; this page takes up to {MAX_MEGAPIXELS}. Scale it"
            " down, or use `vcp-clip predict --tile-size`."
        )


def without_folders(text: object, paths: Sequence[str]) -> str:
    """A message with file names instead of the server's paths."""
    text = str(text)
    for path in paths:
        text = text.replace(str(path), Path(path).name)
    return text


def message(text: object, kind: str = "", paths: Sequence[str] = ()) -> str:
    """A line for the visitor, as HTML; kinds: normal, anomalous, warning, error."""
    lead = {"error": "<strong>That did not work.</strong> "}.get(kind, "")
    return f'<div class="message {kind}">{lead}{html.escape(without_folders(text, paths))}</div>'


def verdict(segmented: Segmented, result: dict[str, Any]) -> str:
    """Label, score and threshold of one picture."""
    name, score = html.escape(segmented.name), f"score {result['score']:.3f}"
    if result["label"] is None:
        return f'<div class="message warning"><strong>{name}: {score}.</strong> {_NO_THRESHOLD}</div>'
    count = len(result["regions"]) if "regions" in result else 0
    regions = {0: "no region", 1: "1 region"}.get(count, f"{count} regions")
    return (
        f'<div class="message {result["label"]}"><strong>{name}: {result["label"]}.</strong> {score.capitalize()},'
        f" threshold {result['image_threshold']:.3f}, {regions}.</div>"
    )


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], words: Sequence[int] = ()) -> str:
    """An HTML table that scrolls in itself, with the keyboard too; `words`: columns of text rather than numbers."""
    kinds = [' class="text"' if number in words else "" for number in range(len(columns))]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(column)}</th>' for kind, column in zip(kinds, columns, strict=True)
    )
    body = ""
    for row in rows:
        cells = (f"<td{kind}>{html.escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f"<tr>{''.join(cells)}</tr>"
    label = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def region_table(result: dict[str, Any]) -> str:
    """Score, area and box of the regions, highest score first."""
    regions = result.get("regions")
    if not regions:
        return ""
    rows = []
    for number, region in enumerate(regions[:_SHOWN_REGIONS], start=1):
        box = region["box"]
        size = f"{box['xmax'] - box['xmin']} x {box['ymax'] - box['ymin']}"
        rows.append((number, f"{region['score']:.3f}", region["area"], f"{box['xmin']}, {box['ymin']}", size))
    more = f", the first {_SHOWN_REGIONS}" if len(regions) > _SHOWN_REGIONS else ""
    return table(f"Regions, in pixels{more}", ("#", "Score", "Area", "Left, top", "Size"), rows)


def batch_table(records: Sequence[dict[str, Any]]) -> str:
    """One line for each picture of a batch."""
    rows = [
        (record["image"], "", record["error"])
        if "error" in record
        else (record["image"], f"{record['score']:.3f}", record["label"] or "no verdict")
        for record in records
    ]
    return table("Results", ("Picture", "Score", "Verdict"), rows, words=(0, 2))


def shown(picture: Image.Image) -> Image.Image:
    """At most `_SHOWN_SIDE` pixels a side."""
    if max(picture.size) <= _SHOWN_SIDE:
        return picture
    picture = picture.copy()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return picture


def example_images(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """Write the examples, products that the embedded checkpoint has not seen -> (path, what is to be seen)."""
    pairs = []
    for product, defect, text in EXAMPLES:
        path = Path(folder) / f"{product}.png"
        render_sample(product, _EXAMPLE_SEED, 0, _EXAMPLE_SIZE, defect).image.save(path)
        pairs.append((str(path), text))
    return pairs


def sent_file(payload) -> str | None:
    """The path of a picture as it was sent. Gradio would decode it; the package reads 16 bits and rotation better."""
    return None if payload is None else payload.path


# --- the page -------------------------------------------------------------------------------------------------------


def build_app(
    model: str | AnomalySegmentationPipeline = EMBEDDED_CHECKPOINT, device: str | None = None, dtype: str = "auto"
) -> gr.Blocks:
    """
    The page; `build_app(...).launch(**launch_options())`.

    Args:
        model (`str` or [`AnomalySegmentationPipeline`]): checkpoint (folder or Hub repository), or a loaded pipeline.
        device (`str`, *optional*): cpu, cuda, ...; the first accelerator by default.
        dtype (`str`, *optional*, defaults to `"auto"`): of the model.

    Raises:
        OSError: the checkpoint is not there.
    """
    if isinstance(model, str):
        name = "vcp-clip-tiny (embedded)" if model == EMBEDDED_CHECKPOINT else model
        try:
            model = pipeline("anomaly-segmentation", model=model, device=device, dtype=dtype)
        except OSError as error:
            raise OSError(f"{model!r} could not be loaded. {error}") from error
    else:
        name = model.model.name_or_path
    inspector, config = Inspector(model), model.model.config
    examples = tempfile.TemporaryDirectory(prefix="vcp-clip-examples-")
    with gr.Blocks(
        title="VCP-CLIP: find defects", analytics_enabled=False, delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT)
    ) as app:
        app.examples_folder = examples  # lives as long as the page
        gr.Markdown(f"# Find defects\nZero-shot, with VCP-CLIP. Checkpoint: `{Path(name).name}`.")
        session = gr.State(inspector.new_session(), time_to_live=_SECONDS_KEPT, delete_callback=Session.close)
        model_call = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
        }  # one forward pass at a time, for all visitors
        map_call = {
            "concurrency_limit": 2,
            "concurrency_id": "map",
            "trigger_mode": "always_last",
            "show_progress": "hidden",
        }

        with gr.Tab("Picture"), gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture", image_mode=None, type="filepath", sources=["upload", "clipboard"], height=320
                )
                picture.preprocess = sent_file  # a subclass would make Gradio write a .pyi file beside this one
                paths, texts = zip(*example_images(examples.name), strict=True)
                gr.Examples(
                    [[path] for path in paths],
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
                known = model.image_processor.threshold
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
                        0, label="Smallest region", info="In pixels.", precision=0, minimum=0, scale=1, min_width=120
                    )
                scale = gr.Image(
                    label="Anomaly map, fixed scale 0 to 1",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="map",
                )
                regions = gr.HTML(elem_id="regions")
        view = [session, answer, slider, scale, regions]
        picture.change(inspector.segment, [session, picture], view, **model_call)
        threshold.input(inspector.set_threshold, [session, threshold, min_area], view, **map_call)
        min_area.input(inspector.set_min_area, [session, min_area], view, **map_call)

        def many(label: str) -> gr.File:
            files = gr.File(label=label, file_count="multiple", height=160)
            folder = gr.UploadButton("Choose a folder", file_count="directory", size="sm")
            folder.upload(images_among, folder, files, queue=False)
            return files

        with gr.Tab("Batch"):
            gr.Markdown(f"Up to {MAX_FILES} pictures. Words and threshold are those of the other tabs.")
            files = many("Pictures")
            start = gr.Button("Segment all", variant="primary")
            batch_answer = gr.HTML(elem_id="batch-answer", elem_classes="answer")
            download = gr.DownloadButton("Download results (zip)", interactive=False, elem_id="download")
            results = gr.HTML()
            gallery = gr.Gallery(
                label=f"Heat maps, the first {_SHOWN_PICTURES}",
                columns=4,
                object_fit="contain",
                visible=False,
                elem_id="gallery",
            )

            def batch(session, paths, progress=gr.Progress()):  # noqa: B008
                session, text, rows, pictures, archive = inspector.segment_batch(session, paths, progress)
                button = gr.DownloadButton(value=archive, interactive=archive is not None)
                return session, text, rows, gr.Gallery(value=pictures, visible=bool(pictures)), button

            start.click(batch, [session, files], [session, batch_answer, results, gallery, download], **model_call)

        with gr.Tab("Calibrate"):
            gr.Markdown(
                "A threshold from pictures of good parts alone, with a stated rate of false alarms. n pictures can"
                " promise a rate of 1 / (n + 1) at best."
            )
            normals = many("Pictures of good parts")
            rate = gr.Slider(0.005, 0.5, 0.05, step=0.005, label="False alarms", info="Part of good parts flagged.")
            calibrate = gr.Button("Calibrate", variant="primary")
            calibration_answer = gr.HTML(elem_id="calibration-answer", elem_classes="answer")
            settings = gr.DownloadButton("Download preprocessor_config.json", interactive=False)

            def calibration(session, paths, rate, progress=gr.Progress()):  # noqa: B008
                session, text, path = inspector.calibrate(session, paths, rate, progress)
                level = gr.skip() if session.threshold is None else min(1.0, session.threshold)
                button = gr.DownloadButton(value=path, interactive=path is not None)
                return session, text, button, level

            calibrate.click(
                calibration, [session, normals, rate], [session, calibration_answer, settings, threshold], **model_call
            ).success(inspector.view, session, view, **map_call)

        with gr.Tab("Words"):
            gr.Markdown(
                "The model asks whether a picture shows a good or a damaged thing. Other words may fit a product"
                " better. One word or one whole sentence with `{}` for the thing a line; as many good as damaged ones."
            )
            own = {state: "\n".join(getattr(config, f"{state}_prompts")) for state in ("normal", "abnormal")}
            gr.Markdown(
                "The checkpoint's own: "
                + "; ".join(f"`{line}`" for text in own.values() for line in text.splitlines())
            )
            with gr.Row():
                normal = gr.Textbox(label="Good", lines=2, placeholder="flawless", elem_id="normal-words")
                abnormal = gr.Textbox(label="Damaged", lines=2, placeholder="scratched", elem_id="abnormal-words")
            with gr.Row():
                use = gr.Button("Use these words", variant="primary")
                reset = gr.Button("Reset")
            words_answer = gr.HTML(elem_id="words-answer", elem_classes="answer")
            for button, inputs in ((use, [session, normal, abnormal]), (reset, [session])):
                act = inspector.set_words if button is use else lambda session: inspector.set_words(session, "", "")
                button.click(act, inputs, [session, words_answer], **model_call).success(
                    inspector.view, session, view, **map_call
                )
        app.load(None, js=_ACCESS.replace("EXAMPLE_NAMES", json.dumps(texts)))
    app.queue(max_size=32, api_open=False)
    return app


def launch_options(host: str | None = None, port: int | None = None, share: bool = False) -> dict[str, Any]:
    """Arguments of `launch`: system fonts (none are fetched), bounded uploads and sessions, no links to elsewhere."""
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "head": f"<style>{_STYLE}</style>",
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "max_file_size": "64mb",
        "state_session_capacity": _SESSIONS,
        "enable_monitoring": False,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=os.environ.get("VCP_CLIP_MODEL", EMBEDDED_CHECKPOINT),
        help="folder or Hub repository (default: $VCP_CLIP_MODEL, or the embedded one)",
    )
    parser.add_argument("--host", help="default: $GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--device", help="cpu, cuda, ...; default: the first accelerator")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    options = parser.parse_args(arguments)
    try:
        app = build_app(options.model, options.device, options.dtype)
    except OSError as error:
        parser.exit(1, f"error: {error}\n")
    app.launch(**launch_options(options.host, options.port, options.share))


if __name__ == "__main__":
    main()
