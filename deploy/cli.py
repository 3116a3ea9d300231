"""The console scripts of this package, as in talent/cli.py."""

from __future__ import annotations

from talent.cli import launcher

bag = launcher("talent-bag", "deploy.bag", extra="ros")
build = launcher("talent-build", "deploy.build", extra="rtx")
export = launcher("talent-export", "deploy.export", extra="export")
evaluate = launcher("talent-eval", "deploy.evaluate", extra="cpu")
inspect_bundle = launcher("talent-inspect", "deploy.inspect_bundle", extra="cpu")
predict = launcher("talent-predict", "deploy.predict", extra="cpu")
doctor = launcher("talent-doctor", "deploy.doctor", extra="cpu")
