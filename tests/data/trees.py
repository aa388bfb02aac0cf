"""Small generated copies of all downloads, with the names, formats and quirks of the originals.

Every image has 40 x 28 pixels, and every mask marks `MARKED`, in the format of its dataset.
"""

import base64
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image


WIDTH, HEIGHT = 40, 28
BOX = (8, 6, 19, 15)  # left, top, right, bottom, all inside
MARKED = np.zeros((HEIGHT, WIDTH), dtype=bool)
MARKED[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = True
SMALL = np.zeros_like(MARKED)
SMALL[20:24, 30:36] = True


def save_image(path: Path, mode: str = "RGB", size=(WIDTH, HEIGHT)) -> None:
    """Save a picture of noise; its path is the seed, so that all pictures differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash_of(str(path))))
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-12:], "little") % 2**32


def save_mask(path: Path, value: int = 255, marked: np.ndarray = MARKED, mode: str = "L", noise: int = 0) -> None:
    """Save a mask with one value, an index in mode P; `noise` adds gray levels around both values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.where(marked, value, 0).astype(np.uint8)
    if noise:
        shades = np.random.default_rng(7).integers(0, noise, values.shape)
        values = np.where(marked, 255 - shades, shades).astype(np.uint8)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 255, 255, *([0, 128, 0] * 254)])
    elif mode == "RGB":
        color = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0)}[value]
        picture = Image.fromarray(np.where(marked[..., None], color, 0).astype(np.uint8))
    picture.save(path)


# Writers of the downloads


def product_folders(root: Path, products, splits=("train",), defects=("crack", "hole"), suffix="_mask") -> None:
    for product in products:
        for split in splits:
            save_image(root / product / split / "good" / "000.png")
        save_image(root / product / "test" / "good" / "000.png")
        for defect in defects:
            save_image(root / product / "test" / defect / "000.png")
            save_mask(root / product / "ground_truth" / defect / f"000{suffix}.png")


MVTEC = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"


def mvtec_ad(root: Path) -> None:
    product_folders(root, MVTEC.split())
    for product in MVTEC.split():
        (root / product / "readme.txt").write_text("text")
    save_image(root / "grid" / "train" / "good" / "001.png", mode="L")


VISA = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"


def visa(root: Path) -> None:
    rows = {"1cls": [], "2cls_fewshot": []}
    for product in VISA.split():
        data = f"{product}/Data"
        annotations = ["image,label,mask"]
        for number in ("0000", "0001"):
            image = f"{data}/Images/Normal/{number}.JPG"
            save_image(root / image)
            annotations.append(f"{image},normal,")
            split = "train" if number == "0000" else "test"
            rows["1cls"].append(f"{product},{split},normal,{image},")
            rows["2cls_fewshot"].append(f"{product},{split},normal,{image},")
        image, mask = f"{data}/Images/Anomaly/000.JPG", f"{data}/Masks/Anomaly/000.png"
        save_image(root / image)
        save_mask(root / mask, value=4)
        annotations.append(f'{image},"burnt, scratch",{mask}')
        rows["1cls"].append(f"{product},test,anomaly,{image},{mask}")
        rows["2cls_fewshot"].append(f"{product},train,anomaly,{image},{mask}")
        (root / product / "image_anno.csv").write_text("\n".join(annotations) + "\n")
    (root / "split_csv").mkdir()
    for name, lines in rows.items():
        table = "\n".join(["object,split,label,image,mask", *lines])
        (root / "split_csv" / f"{name}.csv").write_text(table + "\n")


def visa_prepared(root: Path) -> None:
    for product in VISA.split():
        save_image(root / product / "train" / "good" / "0000.JPG")
        save_image(root / product / "test" / "good" / "0001.JPG")
        save_image(root / product / "test" / "bad" / "000.JPG")
        save_mask(root / product / "ground_truth" / "bad" / "000.png")


def bsd(root: Path) -> None:
    entries = []

    def add(name: str, split, sequences=()):
        save_image(root / "data" / f"{name}.jpg")
        if split is not None:
            save_labelme(root / "label" / f"{name}.json", f"{name}.jpg")
        entries.append(
            {
                "filename": f"{name}.jpg",
                "train_test_split": split,
                "type": 2,
                "wear_dev": list(sequences),
                "annotations": f"{name}.json" if split else None,
            }
        )

    for frame in range(8):  # wear begins at frame 6
        add(f"01_2009040{frame}", "train" if frame == 6 else "test" if frame == 7 else None, ["sequence_a"])
    add("01_20090400_b", None, ["sequence_a", "sequence_b"])  # in sequence_b, wear begins right after it
    add("01_20090401_b", "train", ["sequence_b"])
    add("KGT1-S-1", "train")
    save_image(root / "data" / "BSD" / "test" / "01_20090406.jpg")  # the stray copy
    (root / "image_data.json").write_text(json.dumps({"images": entries[::-1]}))


def save_labelme(path: Path, image: str, size=(WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left, top, right, bottom = BOX
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    shape = {"label": "Pitting", "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
    content = {
        "version": "4.5.6",
        "shapes": [shape],
        "imagePath": image,
        "imageData": base64.b64encode(b"x" * 500).decode(),
        "imageHeight": size[1],
        "imageWidth": size[0],
    }
    path.write_text(json.dumps(content))


GC10_NAMES = ("1_chongkong", "2_hanfeng", "3_yueyawan", "4_shuiban", "5_youban", "6_siban", "7_yiwu", "8_yahen")


def gc10_det(root: Path) -> None:
    for number in range(1, 11):
        name = [*GC10_NAMES, "9_zhehen", "10_yaozhed"][number - 1]
        save_image(root / str(number) / f"img_01_{number}_00.jpg", mode="L")
        save_voc(root / "lable" / f"img_01_{number}_00.xml", [name])
    save_voc(root / "lable" / "img_01_1_00.xml", ["1_chongkong", "d"])
    (root / "2" / "img_01_1_00.jpg").write_bytes(
        (root / "1" / "img_01_1_00.jpg").read_bytes()
    )  # the same image in two folders
    save_image(root / "3" / "img_02_no_xml_00.jpg", mode="L")
    save_image(root / "4" / "img_02_no_box_00.jpg", mode="L")
    save_voc(root / "lable" / "img_02_no_box_00.xml", [])


def save_voc(path: Path, names) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True))
    objects = "".join(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>" for name in names)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>1</depth></size>"
    path.write_text(f"<annotation>{size}{objects}</annotation>")


def ksdd2(root: Path) -> None:
    for split, first in (("train", 10300), ("test", 20000)):
        for number in range(first, first + 4):
            save_image(root / split / f"{number}.png")
            marked = MARKED if number % 2 else MARKED & False
            save_mask(root / split / f"{number}_GT.png", marked=marked)
    for name in ("10301", "10301_GT"):
        copy = root / "train" / f"{name} (copy).png"
        copy.write_bytes((root / "train" / f"{name}.png").read_bytes())
    (root / "split_weakly_246.pyb").write_bytes(b"\x80\x04cposix\nsystem\n.")


def msd(root: Path, image_folder=None, mask_folder=None, mode="RGB") -> None:
    kinds = {"oil": ("Oil", "ground_truth_2", 1), "stain": ("Sta", "ground_truth_1", 2)}
    kinds["scratch"] = ("Scr", "ground_truth_1", 3)
    for folder, (prefix, masks, value) in kinds.items():
        for number in (1, 2):
            save_image(root / (image_folder or folder) / f"{prefix}_{number:04d}.jpg")
            save_mask(root / (mask_folder or masks) / f"{prefix}_{number:04d}.png", value, mode=mode)
    save_image(root / "good" / "0001.jpg")


def msd_voc(root: Path) -> None:
    msd(root, "JPEGImages", "SegmentationClass", mode="P")


def road(root: Path) -> None:
    for name in ("001", "002", "042", "201", "202", "301"):
        save_image(root / "image" / f"{name}.jpg")
    for name in ("001", "002", "042"):
        save_seg(root / "seg" / f"{name}.seg")
    (root / "image" / "image.rar").write_bytes(b"Rar!")


def crack_labels() -> np.ndarray:
    """Return labels: 0 road, 1 crack, 2 road inside a crack, 3 another crack; `MARKED` is the union of 1 and 3."""
    labels = np.zeros(MARKED.shape, dtype=np.uint8)
    labels[MARKED] = 1
    labels[BOX[1] : BOX[3] + 1, BOX[0] : BOX[0] + 3] = 3
    labels[20:24, 30:36] = 2
    return labels


def save_seg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for y, line in enumerate(crack_labels()):
        starts = [0, *(np.flatnonzero(np.diff(line.astype(int))) + 1), WIDTH]
        rows += [f"{line[a]} {y} {a} {b - 1}" for a, b in itertools.pairwise(starts)]
    header = f"image C:\\image\\039.jpg\nwidth {WIDTH}\nheight {HEIGHT}\nsegments 4\ngray 1\nformat ascii cr\ndata\n"
    path.write_text(header + "\n".join(rows) + "\n")


def road_matlab(root: Path) -> None:
    from scipy.io import savemat

    for name in ("001", "201"):
        save_image(root / "image" / f"{name}.jpg")
    (root / "groundTruth").mkdir()
    outline = np.zeros(MARKED.shape, np.uint8)
    content = {"Segmentation": crack_labels() + np.uint8(1), "Boundaries": outline}
    savemat(root / "groundTruth" / "001.mat", {"groundTruth": content})


def rsdd(root: Path) -> None:
    for kind in ("Type-I RSDDs dataset", "Type-II RSDDs dataset"):
        for number in (1, 2):
            save_image(root / kind / "Rail surface images" / f"rail_{number}.jpg", mode="L")
            mask = root / kind / "GroundTruth" / f"rail_{number}.jpg"
            mask.parent.mkdir(parents=True, exist_ok=True)
            # blurred by JPEG
            Image.fromarray(np.where(MARKED, 255, 0).astype(np.uint8)).save(mask, quality=90)


def btad(root: Path, image_suffixes=(".bmp", ".png", ".bmp"), mask_suffixes=(".png", ".png", ".bmp")) -> None:
    for product, image, mask in zip(("01", "02", "03"), image_suffixes, mask_suffixes, strict=True):
        save_image(root / product / "train" / "ok" / f"0000{image}")
        save_image(root / product / "test" / "ok" / f"0000{image}")
        save_image(root / product / "test" / "ko" / f"0001{image}")
        save_mask(root / product / "ground_truth" / "ko" / f"0001{mask}")


def btad_converted(root: Path) -> None:
    btad(root, (".png",) * 3, (".png",) * 3)


def dagm(root: Path, doubled: bool = False) -> None:
    for number in range(1, 11):
        base = root / f"Class{number}" / (f"Class{number}" if doubled else "")
        for part, first in (("Train", 1), ("Test", 3)):
            save_image(base / part / f"{first:04d}.PNG", mode="L")
            save_image(base / part / f"{first + 1:04d}.PNG", mode="L")
            save_mask(base / part / "Label" / f"{first + 1:04d}_label.PNG")
            lines = ["1", f"{first}\t0\t{first:04d}.PNG\t0\t0"]
            lines.append(f"{first + 1}\t1\t{first + 1:04d}.PNG\t0\t{first + 1:04d}_label.PNG")
            (base / part / "Label" / "Labels.txt").write_text("\n".join(lines) + "\n")
    # one of the masks that are known to be nearly empty; here it is empty
    save_image(root / "Class8" / ("Class8" if doubled else "") / "Train" / "0265.PNG", mode="L")
    mask = root / "Class8" / ("Class8" if doubled else "") / "Train" / "Label" / "0265_label.PNG"
    save_mask(mask, marked=MARKED & False)


def dagm_doubled(root: Path) -> None:
    dagm(root, doubled=True)


def mpdd(root: Path) -> None:
    product_folders(root, ["bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"])


def kolektor_sdd(root: Path) -> None:
    for item in ("kos01", "kos26"):
        for part in (0, 1):
            path = root / item / f"Part{part}.jpg"
            save_image(path, mode="L")
            label = path.with_name(f"Part{part}_label.bmp")
            if part:
                save_mask(label, value=1, mode="P")
            else:
                save_mask(label, marked=MARKED & False)


def magnetic_tile(root: Path) -> None:
    for kind in ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free"):
        stem = root / f"MT_{kind}" / "Imgs" / "exp1_num_1"
        save_image(stem.with_suffix(".jpg"), mode="L")
        save_mask(stem.with_suffix(".png"), marked=MARKED & (kind != "Free"), noise=0 if kind == "Free" else 90)
    stem = root / "MT_Uneven" / "Imgs" / "exp3_num_45042"
    save_image(stem.with_suffix(".jpg"), mode="L")
    save_mask(stem.with_suffix(".png"), marked=MARKED & False)


def mvtec_loco(root: Path) -> None:
    parts = (MARKED & (np.arange(WIDTH) < 12), MARKED & (np.arange(WIDTH) >= 12))
    for product in ["breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"]:
        for split in ("train", "validation", "test"):
            save_image(root / product / split / "good" / "000.png")
        for kind in ("logical_anomalies", "structural_anomalies"):
            save_image(root / product / "test" / kind / "000.png")
            for number, part in enumerate(parts):  # 254 is not among the values that the dataset lists
                save_mask(
                    root / product / "ground_truth" / kind / "000" / f"00{number}.png", value=255 - number, marked=part
                )
        (root / product / "defects_config.json").write_text("[]")


def mvtec_ad_2(root: Path) -> None:
    for product in ["can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"]:
        for split in ("train", "validation", "test_public"):
            save_image(root / product / split / "good" / "000_regular.png")
        save_image(root / product / "test_public" / "bad" / "001_overexposed.png")
        save_mask(root / product / "test_public" / "ground_truth" / "bad" / "001_overexposed_mask.png")
        for split in ("test_private", "test_private_mixed"):
            save_image(root / product / split / "000_regular.png")


DTD = "Blotchy_099 Fibrous_183 Marbled_078 Matted_069 Mesh_114 Perforated_037 Stratified_154 Woven_001 Woven_068"


def dtd_synthetic(root: Path) -> None:
    product_folders(root, [*DTD.split(), "Woven_104", "Woven_125", "Woven_127"], defects=("bad",))


REAL_IAD = (
    "audiojack bottle_cap button_battery end_cap eraser fire_hood mint mounts pcb phone_battery plastic_nut"
    " plastic_plug porcelain_doll regulator rolled_strip_base sim_card_set switch tape terminalblock toothbrush toy"
    " toy_brick transistor1 u_block usb usb_adaptor vcpill wooden_beads woodstick zipper"
)


def real_iad(root: Path, json_folder: str = "realiad_jsons") -> None:
    (root / json_folder).mkdir(parents=True)
    for product in REAL_IAD.split():
        base = root / "realiad_256" / product
        train = "OK/S0001/{0}_0001_OK_C1_2023.jpg"
        hidden = "NG/BX/S0002/{0}_0002_NG_BX_C1_2023.jpg"
        defect = "NG/BX/S0002/{0}_0002_NG_BX_C2_2023.jpg"
        rows = {"train": [], "test": []}
        for split, pattern, kind in (("train", train, "OK"), ("test", hidden, "OK"), ("test", defect, "BX")):
            image = pattern.format(product)
            save_image(base / image)
            mask = None
            if kind != "OK":
                mask = image.replace(".jpg", ".png")
                save_mask(base / mask)
            rows[split].append({"category": product, "anomaly_class": kind, "image_path": image, "mask_path": mask})
        meta = {"meta": {"normal_class": "OK", "prefix": f"{product}/"}}
        (root / json_folder / f"{product}.json").write_text(json.dumps(meta | rows))


def real_iad_nested(root: Path) -> None:
    real_iad(root, "realiad_jsons/realiad_jsons")


def standard(root: Path, products=("product_a", "product_b"), stem: str = "000") -> None:
    """Write the layout of VCP-CLIP's authors: .bmp images, masks with the stem of their image."""
    for product in products:
        save_image(root / product / "train" / "good" / "100.bmp")
        save_image(root / product / "test" / "good" / "101.bmp")
        save_image(root / product / "test" / "anomaly" / f"{stem}.bmp")
        save_mask(root / product / "ground_truth" / "anomaly" / f"{stem}.png")


@dataclass(frozen=True)
class Tree:
    """
    A download, the expected content, and ways to break it.

    Args:
        dataset: Name of the dataset.
        layout: Expected layout.
        write: Function that writes the tree into a folder.
        labels: Numbers of (normal, anomalous, unknown) images by split.
        image: One of the anomalous images.
        mask: File that its mask is read from.
        defect: Name of its defect.
        breaks:
            Name of a fault -> (function that causes it, expected text of the error); in addition to the faults that
            are tested with every tree.
        left_out: Number of files left out as known gaps of the dataset.
        options: Options of the builder.
        image_id: Id of `image`, if it is not its path without the extension.
    """

    dataset: str
    layout: str
    write: Callable[[Path], None]
    labels: dict[str, tuple[int, int, int]]
    image: str
    mask: str
    defect: str
    breaks: dict = field(default_factory=dict)
    left_out: int = 0
    options: dict = field(default_factory=dict)
    image_id: str = ""

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.layout}-{self.write.__name__}"


def remove(path: str):
    def apply(root: Path) -> None:
        target = root / path
        if target.is_dir():
            for file in sorted(target.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            target.rmdir()
        else:
            target.unlink()

    return apply


def replace_text(path: str, old: str, new: str):
    def apply(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return apply


def add_image(path: str):
    return lambda root: save_image(root / path)


def add_mask(path: str, **options):
    return lambda root: save_mask(root / path, **options)


def product_breaks(product: str, defect: str, suffix: str = "_mask") -> dict:
    return {
        "no product": (remove(product), f"{product}: no such folder"),
        "no train images": (remove(f"{product}/train"), f"{product}/train: no such folder"),
        "no folder of images": (
            remove(f"{product}/test/{defect}"),
            f"ground_truth/{defect}: masks without a folder of images",
        ),
        "no masks at all": (remove(f"{product}/ground_truth/{defect}"), "no masks for the 1 images"),
        "mask alone": (
            add_mask(f"{product}/ground_truth/{defect}/999{suffix}.png"),
            f"999{suffix}.png: a mask without an image",
        ),
        "same name twice": (add_image(f"{product}/test/good/000.jpg"), "two images of this name"),
    }


TREES = [
    Tree(
        "mvtec_ad",
        "official",
        mvtec_ad,
        {"train": (16, 0, 0), "test": (15, 30, 0)},
        "cable/test/hole/000.png",
        "cable/ground_truth/hole/000_mask.png",
        "hole",
        product_breaks("cable", "hole"),
    ),
    Tree(
        "visa",
        "official",
        visa,
        {"train": (12, 0, 0), "test": (12, 12, 0)},
        "pcb1/Data/Images/Anomaly/000.JPG",
        "pcb1/Data/Masks/Anomaly/000.png",
        "burnt, scratch",
        {
            "no table": (remove("split_csv/1cls.csv"), "split_csv/1cls.csv: no such file"),
            "no product": (remove("pcb1"), "pcb1: no such folder"),
            "no image": (remove("pcb1/Data/Images/Normal/0001.JPG"), "no such file, but split_csv/1cls.csv lists it"),
        },
    ),
    Tree(
        "visa",
        "official",
        visa,
        {"train": (12, 12, 0), "test": (12, 0, 0)},
        "pcb1/Data/Images/Anomaly/000.JPG",
        "pcb1/Data/Masks/Anomaly/000.png",
        "burnt, scratch",
        options={"split_csv": "2cls_fewshot"},
    ),
    Tree(
        "visa",
        "prepared",
        visa_prepared,
        {"train": (12, 0, 0), "test": (12, 12, 0)},
        "pcb1/test/bad/000.JPG",
        "pcb1/ground_truth/bad/000.png",
        "anomaly",
        {"no product": (remove("pcb1"), "pcb1: no such folder")},
    ),
    Tree(
        "bsd",
        "official",
        bsd,
        {"train": (0, 3, 0), "test": (0, 1, 0), "normal": (3, 0, 0)},
        "data/01_20090406.jpg",
        "label/01_20090406.json",
        "pitting",
        {
            "no list": (lambda root: (root / "image_data.json").write_text("{}"), "not the authors' list"),
            "no split": (replace_text("image_data.json", '"test"', "null"), "is annotated, but belongs to no split"),
            "no image": (remove("data/KGT1-S-1.jpg"), "no such file, but image_data.json lists it"),
            "no polygons": (replace_text("label/KGT1-S-1.json", '"shapes"', '"forms"'), "not a labelme file"),
        },
        left_out=4,
        image_id="01_20090406",
    ),
    Tree(
        "gc10_det",
        "official",
        gc10_det,
        {"test": (0, 10, 0)},
        "7/img_01_7_00.jpg",
        "lable/img_01_7_00.xml",
        "inclusion",
        {
            "no class": (remove("7"), "7: no such folder"),
            "broken file": (lambda root: (root / "lable/img_01_7_00.xml").write_text("<a"), "not a PASCAL VOC file"),
            "many lost": (
                lambda root: [save_image(root / "5" / f"img_{i}.jpg") for i in range(12)],
                "img_0.jpg: no annotation",
            ),
        },
        left_out=3,
        image_id="img_01_7_00",
    ),
    Tree(
        "ksdd2",
        "official",
        ksdd2,
        {"train": (2, 2, 0), "test": (2, 2, 0)},
        "test/20001.png",
        "test/20001_GT.png",
        "anomaly",
        {
            "no split": (remove("train"), "train: no such folder"),
            "mask alone": (remove("train/10300.png"), "train/10300_GT.png: a mask without an image"),
        },
        left_out=2,
    ),
    Tree(
        "msd",
        "official",
        msd,
        {"test": (1, 6, 0)},
        "oil/Oil_0001.jpg",
        "ground_truth_2/Oil_0001.png",
        "oil",
        {
            "no class": (remove("scratch"), "scratch: no such folder"),
            "no normals": (remove("good"), "good: no such folder"),
            "another name": (add_image("oil/Water_0001.jpg"), "does not begin with Oil, Scr or Sta"),
        },
        image_id="Oil_0001",
    ),
    Tree(
        "msd",
        "voc",
        msd_voc,
        {"test": (1, 6, 0)},
        "JPEGImages/Sta_0002.jpg",
        "SegmentationClass/Sta_0002.png",
        "stain",
        {"mask alone": (remove("JPEGImages/Oil_0001.jpg"), "a mask without an image")},
        image_id="Sta_0002",
    ),
    Tree(
        "road",
        "official",
        road,
        {"test": (0, 2, 0), "normal": (1, 0, 0)},
        "image/001.jpg",
        "seg/001.seg",
        "crack",
        {
            "image lost": (remove("image/002.jpg"), "seg/002.seg: ground truth without an image"),
            "table cut": (replace_text("seg/002.seg", "\ndata", "\ndat"), "not a segmentation table"),
        },
        left_out=3,
        image_id="001",
    ),
    Tree(
        "road",
        "official",
        road_matlab,
        {"test": (0, 1, 0), "normal": (1, 0, 0)},
        "image/001.jpg",
        "groundTruth/001.mat",
        "crack",
        image_id="001",
    ),
    Tree(
        "rsdd",
        "official",
        rsdd,
        {"test": (0, 4, 0)},
        "Type-II RSDDs dataset/Rail surface images/rail_2.jpg",
        "Type-II RSDDs dataset/GroundTruth/rail_2.jpg",
        "surface_defect",
        {
            "no images": (
                remove("Type-I RSDDs dataset/Rail surface images"),
                "Type-I RSDDs dataset/Rail surface images: no images",
            ),
            "mask alone": (add_mask("Type-I RSDDs dataset/GroundTruth/rail_9.jpg"), "a mask without an image"),
        },
    ),
    Tree(
        "btad",
        "official",
        btad,
        {"train": (3, 0, 0), "test": (3, 3, 0)},
        "03/test/ko/0001.bmp",
        "03/ground_truth/ko/0001.bmp",
        "anomaly",
        {
            "no product": (remove("02"), "02: no such folder"),
            "both formats": (add_image("03/test/ko/0001.png"), "no mask"),
        },
    ),
    Tree(
        "btad",
        "official",
        btad_converted,
        {"train": (3, 0, 0), "test": (3, 3, 0)},
        "03/test/ko/0001.png",
        "03/ground_truth/ko/0001.png",
        "anomaly",
    ),
    Tree(
        "dagm",
        "official",
        dagm,
        {"train": (10, 10, 0), "test": (10, 10, 0)},
        "Class3/Test/0004.PNG",
        "Class3/Test/Label/0004_label.PNG",
        "anomaly",
        {
            "no class": (remove("Class4"), "Class4: no such folder"),
            "no part": (remove("Class4/Test"), "Class4/Test: no such folder"),
            "mask alone": (remove("Class4/Test/0004.PNG"), "a mask without an image"),
        },
        left_out=1,
        image_id="Class3/0004",
    ),
    Tree(
        "dagm",
        "official",
        dagm_doubled,
        {"train": (10, 10, 0), "test": (10, 10, 0)},
        "Class3/Class3/Test/0004.PNG",
        "Class3/Class3/Test/Label/0004_label.PNG",
        "anomaly",
        left_out=1,
        image_id="Class3/0004",
    ),
    Tree(
        "mpdd",
        "official",
        mpdd,
        {"train": (6, 0, 0), "test": (6, 12, 0)},
        "tubes/test/crack/000.png",
        "tubes/ground_truth/crack/000_mask.png",
        "crack",
        product_breaks("tubes", "crack"),
    ),
    Tree(
        "kolektor_sdd",
        "official",
        kolektor_sdd,
        {"test": (2, 2, 0)},
        "kos26/Part1.jpg",
        "kos26/Part1_label.bmp",
        "crack",
        {"mask alone": (remove("kos01/Part0.jpg"), "kos01/Part0_label.bmp: a mask without an image")},
    ),
    Tree(
        "magnetic_tile",
        "official",
        magnetic_tile,
        {"test": (1, 5, 0)},
        "MT_Crack/Imgs/exp1_num_1.jpg",
        "MT_Crack/Imgs/exp1_num_1.png",
        "crack",
        {
            "no kind": (remove("MT_Fray"), "MT_Fray/Imgs: no such folder"),
            "mask alone": (remove("MT_Fray/Imgs/exp1_num_1.jpg"), "a mask without an image"),
            "a marked normal": (add_mask("MT_Free/Imgs/exp1_num_1.png"), "a normal image, but its mask marks"),
        },
        left_out=1,
    ),
    Tree(
        "mvtec_loco",
        "official",
        mvtec_loco,
        {"train": (5, 0, 0), "validation": (5, 0, 0), "test": (5, 10, 0)},
        "pushpins/test/logical_anomalies/000.png",
        "pushpins/ground_truth/logical_anomalies/000",
        "logical_anomalies",
        {
            "no validation": (remove("pushpins/validation"), "pushpins/validation: no such folder"),
            "sizes differ": (
                lambda root: save_mask(
                    root / "pushpins/ground_truth/logical_anomalies/000/001.png", marked=np.ones((5, 5), bool)
                ),
                "its 2 masks differ in size",
            ),
        },
    ),
    Tree(
        "mvtec_ad_2",
        "official",
        mvtec_ad_2,
        {
            "train": (8, 0, 0),
            "validation": (8, 0, 0),
            "test": (8, 8, 0),
            "test_private": (0, 0, 8),
            "test_private_mixed": (0, 0, 8),
        },
        "rice/test_public/bad/001_overexposed.png",
        "rice/test_public/ground_truth/bad/001_overexposed_mask.png",
        "anomaly",
        {"no product": (remove("rice"), "rice: no such folder")},
    ),
    Tree(
        "dtd_synthetic",
        "official",
        dtd_synthetic,
        {"train": (12, 0, 0), "test": (12, 12, 0)},
        "Mesh_114/test/bad/000.png",
        "Mesh_114/ground_truth/bad/000_mask.png",
        "anomaly",
        product_breaks("Mesh_114", "bad"),
    ),
    Tree(
        "real_iad",
        "official",
        real_iad,
        {"train": (30, 0, 0), "test": (30, 30, 0)},
        "realiad_256/usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023.jpg",
        "realiad_256/usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023.png",
        "deformation",
        {
            "no table": (remove("realiad_jsons/usb.json"), "usb.json: no such file"),
            "no product": (remove("realiad_256/usb"), "realiad_256/usb: no such folder"),
            "no table at all": (replace_text("realiad_jsons/usb.json", '"test"', '"tests"'), "not a Real-IAD split"),
            "several sizes": (add_image("realiad_512/usb/OK/S0001/a.jpg"), "several resolutions: pass resolution"),
        },
        image_id="usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023",
    ),
    Tree(
        "real_iad",
        "official",
        real_iad_nested,
        {"train": (30, 0, 0), "test": (30, 30, 0)},
        "realiad_256/usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023.jpg",
        "realiad_256/usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023.png",
        "deformation",
        options={"resolution": "256"},
        image_id="usb/NG/BX/S0002/usb_0002_NG_BX_C2_2023",
    ),
    *(
        Tree(
            dataset,
            "standard",
            standard,
            {"train": (2, 0, 0), "test": (2, 2, 0)},
            "product_b/test/anomaly/000.bmp",
            "product_b/ground_truth/anomaly/000.png",
            "anomaly",
        )
        for dataset in ("mvtec_ad", "visa", "bsd", "gc10_det", "ksdd2", "msd", "road", "rsdd", "btad", "dagm")
    ),
]
