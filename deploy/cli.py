"""The console scripts of this package, as in talent/cli.py."""

from __future__ import annotations

from talent.cli import launcher

export = launcher("talent-export", "deploy.export", extra="export")
evaluate = launcher("talent-eval", "deploy.evaluate", extra="cpu")
predict = launcher("talent-predict", "deploy.predict", extra="cpu")
