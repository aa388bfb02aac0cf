"""Ground truth from annotation tools: COCO, labelme, YOLO segmentation, and CVAT's XML for images."""

__all__: list[str] = []
