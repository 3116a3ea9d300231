"""What colcon installs of the package talent_ros."""

from setuptools import setup

NAME = "talent_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="TALENT Edge as a ROS 2 lifecycle node",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/talent.launch.py"]),
        (f"share/{NAME}/config", ["config/talent.yaml"]),
    ],
    install_requires=["setuptools"],  # talent-edge too, but not by name: talent_ros.cli says how to install it
    zip_safe=True,
    entry_points={"console_scripts": ["talent_node = talent_ros.cli:main"]},
)
