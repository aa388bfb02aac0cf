"""Products, one function each. Importing this package registers all of them."""

from . import objects_consumer, objects_electronic, objects_mechanical, textures_metal, textures_other


__all__ = ["objects_consumer", "objects_electronic", "objects_mechanical", "textures_metal", "textures_other"]
