"""Distribution metadata, console scripts and extras of talent-edge."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "talent/__init__.py").read_text())[1]

RUNTIME = ["numpy>=1.26", "opencv-python-headless>=4.8", "tokenizers>=0.19"]
TRAIN = ["torch>=2.6", "torchvision", "timm>=1.0.9", "open_clip_torch>=2.26", "peft>=0.13", "accelerate>=1.0",
         "safetensors>=0.4", "scikit-image>=0.22", "pycocotools>=2.0.7", "jsonargparse>=4.49", "docstring-parser",
         "pyyaml", "tqdm>=4.66", "matplotlib>=3.8", "tensorboard>=2.15"]
# ModelOpt brings onnxruntime-gpu, which also runs on a CPU; plain onnxruntime beside it breaks both.
EXPORT = [*TRAIN, "onnx>=1.17", "onnxsim>=0.4.36", "onnxscript>=0.3", "nvidia-modelopt[onnx]>=0.27"]
RTX = ["tensorrt_rtx>=1.1", "polygraphy>=0.49.14", "tqdm>=4.66"]
TENSORRT = ["tensorrt>=10.3", "polygraphy>=0.49.14", "pycuda", "tqdm>=4.66"]
CPU = ["onnxruntime>=1.18", "tqdm>=4.66"]
ROS = ["rosbags>=0.11", "tqdm>=4.66"]
BENCHMARKS = ["matplotlib>=3.8", "psutil>=5.9"]
PEERS = ["transformers>=4.40"]
DEV = ["pytest>=8", "pytest-xdist>=3", "ruff>=0.6", "build", "jsonschema>=4.18"]
ALL = sorted({*EXPORT, *RTX, *ROS, *BENCHMARKS, *PEERS})

setup(
    name="talent-edge",
    version=VERSION,
    description="Edge deployment toolkit for referring image segmentation: LoRA, ONNX, INT8, TensorRT",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["talent", "talent.*", "deploy", "deploy.*", "calibration", "calibration.*"]),
    package_data={"deploy": ["bundle.schema.json"]},
    install_requires=RUNTIME,
    extras_require={"train": TRAIN, "export": EXPORT, "rtx": RTX, "tensorrt": TENSORRT, "cpu": CPU,
                    "ros": ROS, "benchmarks": BENCHMARKS, "peers": PEERS, "dev": [*DEV, *ALL], "all": ALL},
    entry_points={"console_scripts": [
        "talent-train = talent.cli:train",
        "talent-eval = deploy.cli:evaluate",
        "talent-data = talent.cli:data",
        "talent-pack = talent.cli:pack",
        "talent-import = talent.cli:import_official",
        "talent-export = deploy.cli:export",
        "talent-build = deploy.cli:build",
        "talent-predict = deploy.cli:predict",
        "talent-bag = deploy.cli:bag",
        "talent-doctor = deploy.cli:doctor",
        "talent-inspect = deploy.cli:inspect_bundle",
    ]},
)
