"""The base class of all dataset builders. The module of a dataset adds its facts and how to list its files.

`datasets` replaces `open`, `os.path` and `pathlib.Path` in the modules of builders, to stream from the network.
Therefore builders, including this one, leave all file access to `file_tree`, `records` and `masks`.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import datasets
from transformers.utils import logging

from ..version import __version__
from .config import AnomalyDatasetConfig
from .did_you_mean import did_you_mean
from .file_tree import absolute_path, fingerprint
from .find_layout import find_layout
from .layout_errors import DatasetLayoutError, LayoutProblem, count_of, listed
from .listing import Layout, Listing
from .records import FEATURES, AnomalyRecord, KnownGap, encode_record
from .reports import join_shares, read_report, shared_folder, write_report, write_share


__all__ = ["AnomalyDatasetBuilder"]

logger = logging.get_logger(__name__)


class AnomalyDatasetBuilder(datasets.GeneratorBasedBuilder):
    """
    Base class of the builders. A builder is instantiated directly and reads a download as it was unpacked:

    ```python
    >>> from vcp_clip_hf.data.catalog.mvtec_ad import MVTecAD

    >>> builder = MVTecAD(data_dir="datasets/mvtec", config_name="bottle")
    >>> print(builder.describe())
    >>> builder.download_and_prepare()  # reads all masks, checks all files; images stay where they are
    >>> test = builder.as_dataset(split="test")
    ```

    There is one configuration per product, and "all", the default. The prepared table is cached under a fingerprint of
    its source files, so a changed, added or removed file leads to a new table.

    The class of a dataset sets `TITLE`, `PRODUCTS`, `LAYOUTS` (tried in this order), the texts, and whether it is one
    of the paper's ten (`IN_PAPER`). `MASK_SOURCE` tells what its masks are made from: "pixels", "polygons" or "boxes".

    Args:
        data_dir (`str`, *optional*): folder of the unpacked download. Without it, the builder only knows its facts.
        config_name (`str`, *optional*, defaults to `"all"`): name of a product, or "all".
        cache_dir (`str`, *optional*): cache folder of `datasets`.
        hash (`str`, *optional*): replacement for the fingerprint.
        options: fields of the configuration, such as `products` and `on_error`, or arguments of
            `datasets.DatasetBuilder`.

    Raises:
        DatasetLayoutError: the folder does not hold the dataset; the error lists the problems.
        ValueError: a product or an option is unknown.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = AnomalyDatasetConfig
    DEFAULT_CONFIG_NAME = "all"

    TITLE: ClassVar[str] = ""
    DESCRIPTION: ClassVar[str] = ""
    PRODUCTS: ClassVar[tuple[str, ...]] = ()
    LAYOUTS: ClassVar[tuple[Layout, ...]] = ()
    SPLITS: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str] = ""
    LICENSE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    IN_PAPER: ClassVar[bool] = False
    MASK_SOURCE: ClassVar[str] = "pixels"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if cls.PRODUCTS:
            names = ["all", *cls.PRODUCTS] if len(cls.PRODUCTS) > 1 or "all" not in cls.PRODUCTS else ["all"]
            cls.BUILDER_CONFIGS = [cls.BUILDER_CONFIG_CLASS(name=name, version=cls.VERSION) for name in names]

    def __init__(
        self,
        data_dir: str | None = None,
        config_name: str | None = None,
        cache_dir: str | None = None,
        hash: str | None = None,
        **options: Any,
    ):
        config_name = config_name or self.DEFAULT_CONFIG_NAME
        data_dir = None if data_dir is None else absolute_path(data_dir)
        if options.get("products") is not None and not isinstance(options["products"], str):
            options["products"] = tuple(options["products"])
        config = self._check_options(config_name, data_dir, options)
        self._listing: Listing | None = None
        self._report_dir: str | None = None  # set while a table is prepared; None for streams
        self._where, self._expected = self.TITLE, ""
        if data_dir is not None and self.LAYOUTS:
            self._listing = self._list(config)
            hash = hash or fingerprint(self._listing.files(), salt=f"{__version__} {self._listing.layout.name}")
        super().__init__(cache_dir=cache_dir, config_name=config_name, hash=hash, data_dir=data_dir, **options)

    def _check_options(self, config_name: str, data_dir: str | None, options: dict) -> AnomalyDatasetConfig:
        """Return the requested configuration. (`datasets` builds its own, but too late for the listing.)"""
        if self.PRODUCTS and config_name not in self.builder_configs:
            raise ValueError(
                f"{self.TITLE} has no product {config_name!r}; {did_you_mean(config_name, self.PRODUCTS)}"
            )
        own = {field.name for field in dataclasses.fields(self.BUILDER_CONFIG_CLASS)}
        known = own | set(inspect.signature(datasets.DatasetBuilder.__init__).parameters)
        for name in options:
            if name not in known:
                choices = sorted(own - {field.name for field in dataclasses.fields(datasets.BuilderConfig)})
                raise ValueError(f"{self.TITLE} has no option {name!r}; {did_you_mean(name, choices)}")
        given = {name: value for name, value in options.items() if name in own and value is not None}
        for field in dataclasses.fields(self.BUILDER_CONFIG_CLASS):
            value = given.get(field.name, field.default)
            if type(field.default) in (int, float) and not isinstance(value, (int, float)):
                raise ValueError(f"{self.TITLE}: {field.name}={value!r} must be a number.")
        return self.BUILDER_CONFIG_CLASS(**{"name": config_name, "data_dir": data_dir, **given})

    def _list(self, config: AnomalyDatasetConfig) -> Listing:
        """Find the layout, list the records of the requested products, and check names."""
        listing = self._find(config)
        self._where = f'{self.TITLE} in {listing.tree.root} (layout "{listing.layout.name}")'
        self._expected = listing.layout.expected
        products = config.products
        if products is None and config.name != self.DEFAULT_CONFIG_NAME:
            products = (config.name,)
        listing.only = None if products is None else frozenset(products)
        listing.layout.collect(listing.tree, listing, config)
        listing.check_ids()
        for product in products or ():
            if product not in listing.products:
                raise ValueError(
                    f"{self._where} has no product {product!r}; {did_you_mean(product, [*listing.products])}"
                )
        logger.info("%s in %s", self.TITLE, listing.summary())
        if config.on_error == "raise" and listing.problems:
            raise self._error(listing.problems)
        if not listing.splits:
            raise self._error([*listing.problems, LayoutProblem(listing.tree.root, "no images")])
        if listing.problems:
            self._warn(listing.problems)
        return listing

    def _find(self, config: AnomalyDatasetConfig) -> Listing:
        """Find the root and the layout. The listing has no records yet."""
        return find_layout(self.TITLE, config.data_dir, self.LAYOUTS, config.layout, self.PRODUCTS)

    def _error(self, problems: Sequence[LayoutProblem]) -> DatasetLayoutError:
        fix = 'Repair or complete the files, choose other products, or pass on_error="skip" to leave these out.'
        return DatasetLayoutError(self._where, problems, self._expected, fix)

    def _warn(self, problems: Sequence[LayoutProblem]) -> None:
        logger.warning("%s", "\n".join([f"{self._where}: left out {count_of(problems)}", *listed(problems)]))

    def __getstate__(self) -> dict:
        # worker processes get their share of the records; the listing holds functions that cannot be pickled
        return {**super().__getstate__(), "_listing": None}

    # Called by `datasets`

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"{self.TITLE}. {self.DESCRIPTION}".strip(),
            features=FEATURES.copy(),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        if self._listing is None:
            if not self.HOMEPAGE:
                raise ValueError(f"{self.TITLE} needs data_dir, the folder of the images.")
            raise ValueError(
                f"{self.TITLE} is not downloaded by this package. Get it from {self.HOMEPAGE} (license:"
                f" {self.LICENSE}), unpack it, and pass the folder as data_dir."
            )
        report_dir = None if dl_manager.is_streaming else self._report_dir
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"records": list(records), "report_dir": report_dir})
            for name, records in self._listing.splits.items()
        ]

    def _generate_examples(self, records: list, report_dir: str | None) -> Iterator[tuple[str, dict]]:
        problems, gaps = [], []
        for item in records:
            record = self.make_record(item)
            try:
                example = encode_record(record, self.config.input_range)
            except KnownGap as gap:
                gaps.append(LayoutProblem(record.image_id, str(gap), record.product))
            except ValueError as error:
                problem = LayoutProblem(record.image_id, str(error), record.product)
                if report_dir is None:
                    if self.config.on_error == "raise":
                        raise self._error([problem]) from error
                    self._warn([problem])
                problems.append(problem)
            else:
                yield record.image_id, example
        if report_dir is not None:
            write_share(self._report_dir or report_dir, problems, gaps)

    def make_record(self, item: Any) -> AnomalyRecord:
        """Return the record of one item of the listing. Builders that render their images override this."""
        return item

    def _download_and_prepare(
        self, dl_manager: datasets.DownloadManager, verification_mode: Any, **prepare_split_kwargs: Any
    ) -> None:
        with shared_folder() as self._report_dir:
            super()._download_and_prepare(dl_manager, verification_mode, **prepare_split_kwargs)
            problems, gaps = join_shares(self._report_dir)
        self._report_dir = None
        write_report(self._output_dir, problems, gaps)
        for name in [name for name, split in self.info.splits.items() if not split.num_examples]:
            del self.info.splits[name]  # `datasets` cannot read a table without rows
        if problems:
            if self.config.on_error == "raise" or not self.info.splits:
                raise self._error(problems)
            self._warn(problems)

    # Called by users

    @property
    def layout(self) -> str | None:
        """Return the name of the layout that was found; None without data."""
        return None if self._listing is None else self._listing.layout.name

    @property
    def mask_source(self) -> str:
        """Return what the masks are made from: "pixels", "polygons" or "boxes"."""
        return self.MASK_SOURCE

    @property
    def left_out(self) -> list[LayoutProblem]:
        """Return the files of the folder that are not in the dataset: skipped problems, and known gaps of the dataset.
        Complete after the dataset was prepared."""
        found = [] if self._listing is None else [*self._listing.problems, *self._listing.known_gaps]
        for part in read_report(self._output_dir):
            found += part
        return found

    def describe(self) -> str:
        """Return what was found, in a few lines."""
        if self._listing is None:
            return f"{self.TITLE}: {len(self.PRODUCTS)} products; no data_dir given"
        return f"{self.TITLE} in {self._listing.summary()}"
