"""Procedural photographs of industrial products with exact defect masks.

From the ground up: `fields` (coordinates, noise), `shapes` (distances, strokes, lettering), `scene` (layers, light,
camera), `materials`, the product families (`textures_*`, `objects_*`), the defect families (`defects_*`), and `render`
which puts one image together. NumPy and Pillow only.
"""

__all__: list[str] = []
