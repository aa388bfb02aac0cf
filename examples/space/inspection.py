"""The logic of the page, without Gradio: each method of [`Inspector`] takes and returns plain values."""

import copy
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from answers import (
    NO_THRESHOLD,
    OTHER_PRODUCTS,
    SHOWN_REGIONS,
    batch_table,
    message,
    region_table,
    verdict,
    without_folders,
)
from curl_commands import request_commands
from PIL import Image

from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.image_files import IMAGE_SUFFIXES
from vcp_clip_hf.image_loading import load_image
from vcp_clip_hf.prediction import predict_files, read_predictions, write_csv
from vcp_clip_hf.visualization import add_color_bar, draw_boxes, heatmap


__all__ = ["MAX_FILES", "SHOWN_PICTURES", "Inspector", "Segmented", "Session", "images_among"]

MAX_MEGAPIXELS = 24
MAX_FILES = 200
SHOWN_PICTURES = 24
_SHOWN_SIDE = 1280  # pictures on the page; maps, masks and regions keep the original size
_BATCH_SIZE = 8
_NOTHING_TO_SEE = (None, None, "", "")
# Errors that a visitor can cause; any other error is a defect of the program and goes to its log
_MISTAKES = (ValueError, TypeError, OSError, Image.DecompressionBombError)


@dataclass
class Segmented:
    """A segmented picture with its map, from which all further answers are computed."""

    name: str
    image: Image.Image
    anomaly_map: np.ndarray
    score: float


@dataclass
class Session:
    """
    Settings and results of one visitor.

    Args:
        processor ([`VCPCLIPImageProcessor`]): copy of the checkpoint's; a calibration changes its thresholds.
        threshold (`float`, *optional*):
            Threshold of the map; `None` until the checkpoint, a calibration or the visitor sets it.
        min_area (`int`): smallest area of a region in pixels.
        prompts (`dict[str, list[str]]`, *optional*): words that replace those of the checkpoint.
        segmented ([`Segmented`], *optional*): current picture.
        folder (`str`, *optional*): folder of the results to download.
    """

    processor: VCPCLIPImageProcessor
    threshold: float | None = None
    min_area: int = 0
    prompts: dict[str, list[str]] | None = None
    segmented: Segmented | None = None
    folder: str | None = field(default=None, compare=False)

    def new_folder(self) -> Path:
        """Make an empty folder for results, and remove the former one."""
        self.close()
        self.folder = tempfile.mkdtemp(prefix="vcp-clip-app-")
        return Path(self.folder)

    def close(self) -> None:
        """Remove the results."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


class Inspector:
    """
    The actions of the page.

    Args:
        pipe ([`AnomalySegmentationPipeline`]): pipeline that all visitors share; it is never changed.
    """

    def __init__(self, pipe: AnomalySegmentationPipeline):
        self.pipe = pipe

    def new_session(self) -> Session:
        """Return the session of a new visitor, with the settings of the checkpoint."""
        processor = copy.deepcopy(self.pipe.image_processor)
        return Session(processor, processor.threshold)

    def _pipe_of(self, session: Session) -> AnomalySegmentationPipeline:
        """Return the shared pipeline with the visitor's thresholds."""
        pipe = copy.copy(self.pipe)
        pipe.image_processor = session.processor
        return pipe

    # --- one picture ------------------------------------------------------------------------------------------------

    def segment(self, session: Session, path: str | None, name: str | None = None) -> tuple:
        """Segment a picture, under the visitor's name of the file if it is known, and return its `view`."""
        session.segmented = None
        if path is None:
            return self.view(session)
        try:
            _check_size(path)
            image = load_image(path, session.processor.input_range)
            result = self._pipe_of(session)(image, **_options(session))
        except _MISTAKES as error:
            return (session, message(error, "error", [path]), *_NOTHING_TO_SEE)
        name = (name or path).rpartition("/")[2]
        session.segmented = Segmented(name, image, result["anomaly_map"], result["score"])
        return self.view(session)

    def set_threshold(self, session: Session, threshold: float, min_area: float | None) -> tuple:
        """Set threshold and smallest region; return the `view`, computed from the stored map."""
        session.threshold = float(threshold)
        return self.set_min_area(session, min_area)

    def set_min_area(self, session: Session, min_area: float | None) -> tuple:
        """Set the smallest region; return the `view`, computed from the stored map."""
        session.min_area = max(0, int(min_area or 0))
        return self.view(session)

    def read(self, session: Session) -> dict[str, Any]:
        """Return the pipeline's result for the stored map and the visitor's threshold, without a forward pass."""
        segmented, processor = session.segmented, session.processor
        settings = {} if session.threshold is None else {"threshold": session.threshold}
        if session.threshold is not None and processor.score_mode == "max":
            settings["image_threshold"] = (
                session.threshold
            )  # score and map share a scale: the verdict follows the slider
        result = processor.scoring(**settings).result(segmented.anomaly_map, segmented.score)
        return self.pipe.postprocess(
            {"results": {**result, "image": segmented.image, "error": None}},
            heatmap=True,
            regions=session.threshold is not None,
            min_area=session.min_area,
        )

    def view(self, session: Session) -> tuple:
        """
        Return session, verdict, (picture, picture with heat map), map with color bar, table of regions, and the
        commands for the same result over HTTP.
        """
        segmented = session.segmented
        if segmented is None:
            return (session, message("Choose a picture, or one of the examples."), *_NOTHING_TO_SEE)
        result = self.read(session)
        regions = result.get("regions", [])
        marked = _shown(draw_boxes(result["heatmap"], regions[:SHOWN_REGIONS]))
        scale = add_color_bar(_shown(heatmap(segmented.anomaly_map)))
        # Neither calibrated nor moved: the checkpoint's own threshold
        remark = OTHER_PRODUCTS if session.threshold == self.pipe.image_processor.threshold else ""
        text = verdict(segmented.name, result, remark)
        pictures = (_shown(segmented.image), marked)
        commands = request_commands(segmented.name, self._recipe(session, result), "regions" in result)
        return session, text, pictures, scale, region_table(result), commands

    def _recipe(self, session: Session, result: dict[str, Any]) -> dict[str, Any] | None:
        """Return the values of a recipe that gives this result, or `None` if they are the checkpoint's own."""
        used = {name: result[name] for name in ("threshold", "image_threshold")}
        processor = self.pipe.image_processor
        own = processor.scoring().thresholds
        # The server leaves out calibrated thresholds that it is not given, where its settings are other ones
        if processor.calibration is None and session.min_area == 0 and tuple(used.values()) == (own.pixel, own.image):
            return None
        known = {name: value for name, value in used.items() if value is not None}
        return {**known, "min_area": session.min_area}

    # --- many pictures ----------------------------------------------------------------------------------------------

    def segment_batch(
        self, session: Session, paths: Sequence[str] | None, progress: Callable | None = None
    ) -> tuple[Session, str, str, list, str | None]:
        """Segment pictures; return session, message, table, (picture, caption) pairs, and the file to download."""
        paths = images_among(paths)
        try:
            _check_count(paths)
        except ValueError as error:
            return session, message(error, "error"), "", [], None
        records, good = [], []
        for path in paths:
            try:
                _check_size(path)
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
        (results / "run.json").unlink(missing_ok=True)  # names folders of this machine
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
        text += f" {found} anomalous." if session.threshold is not None else f" {NO_THRESHOLD}"
        kind = "warning" if failed or session.threshold is None else "normal"
        return session, message(text, kind), batch_table(records), pictures[:SHOWN_PICTURES], str(archive)

    # --- calibration and words --------------------------------------------------------------------------------------

    def calibrate(
        self, session: Session, paths: Sequence[str] | None, false_alarm_rate: float, progress: Callable | None = None
    ) -> tuple[Session, str, str | None]:
        """Calibrate on pictures of good parts; return session, message, and `preprocessor_config.json` to download."""
        paths = images_among(paths)
        pipe = copy.copy(self.pipe)
        pipe.image_processor = copy.deepcopy(
            session.processor
        )  # so that a failure does not change the visitor's thresholds

        def one_by_one() -> Iterable[str]:
            for number, path in enumerate(paths):
                if progress is not None:
                    progress((number, len(paths)), desc="Looking at good parts")
                _check_size(path)
                yield path

        try:
            _check_count(paths)
            calibration = pipe.calibrate(one_by_one(), false_alarm_rate=false_alarm_rate, **_options(session))
        except _MISTAKES as error:
            return session, message(error, "error", paths), None
        session.processor = pipe.image_processor
        text = calibration.describe() + " It is used on this page from now on."
        if session.processor.score_mode == "max":
            session.threshold = session.processor.threshold
        else:
            text += " It is for verdicts: this checkpoint's scores are not values of the map. Set the slider by eye."
        folder = session.new_folder()
        session.processor.save_pretrained(folder)
        kind = "normal" if calibration.reached else "warning"
        return session, message(text, kind), str(folder / "preprocessor_config.json")

    def set_words(self, session: Session, normal: str, abnormal: str) -> tuple[Session, str]:
        """Set the words of both states, one per line; return session and message. Without words: the checkpoint's."""
        words = {"normal": _lines_of(normal), "abnormal": _lines_of(abnormal)}
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
                size = session.processor.size  # without a picture, check only that the words are valid
                self._pipe_of(session)(Image.new("RGB", (size.width, size.height)), **_options(session))
        except _MISTAKES as error:
            session.prompts = former
            return session, message(error, "error")
        text = "These words are used from now on, on every tab." if session.prompts else "The checkpoint's own words."
        if changed and session.threshold is not None:
            return session, message(f"{text} The threshold was set with other words: calibrate again.", "warning")
        return session, message(text, "normal")


# --- uploads and pictures -------------------------------------------------------------------------------------------


def _options(session: Session) -> dict[str, Any]:
    return {} if session.prompts is None else {"prompts": session.prompts}


def _lines_of(text: str | None) -> list[str]:
    """Return the lines that are not blank."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def images_among(paths: Sequence[str] | str | None) -> list[str]:
    """Return the uploaded files with the suffix of an image; a folder may have other files."""
    paths = [paths] if isinstance(paths, str) else list(paths or [])
    return [path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES]


def _check_count(paths: Sequence[str]) -> None:
    """
    Check the number of files.

    Raises:
        ValueError: there are no images, or too many for a web page.
    """
    if not paths:
        raise ValueError(f"No images. Choose files that end in {', '.join(IMAGE_SUFFIXES)}.")
    if len(paths) > MAX_FILES:
        raise ValueError(
            f"{len(paths)} images; this page takes up to {MAX_FILES} at a time. Use `vcp-clip predict` or"
            " `vcp-clip calibrate` for more."
        )


def _check_size(path: str) -> None:
    """
    Check that a file is an image of a size that the page takes.

    Raises:
        ValueError: the file is not an image, or too large for a web page. Only the header of the file is read.
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


def _shown(picture: Image.Image) -> Image.Image:
    """Return the picture with at most `_SHOWN_SIDE` pixels per side."""
    if max(picture.size) <= _SHOWN_SIDE:
        return picture
    picture = picture.copy()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return picture
