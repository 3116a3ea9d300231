"""The page that the demo leaves behind: one HTML file with everything inside, for light and dark screens."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.latency import EMULATED, STAGE_COLOURS, STAGES, WHOLE
from benchmarks.page_style import BASE_STYLE
from benchmarks.report_table import text
from benchmarks.report_text import milliseconds, score
from talent.data.sample import Sample
from talent.files import atomic_write
from talent.metrics import iou

ANSWERS = {"before": "before tuning", "after": "after LoRA", "fp32": "ONNX FP32", "fp16": "ONNX FP16",
           "int8": "ONNX INT8"}
OUTLINE = (255, 221, 51)  # RGB, of the ground truth
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")
DIM = 0.62  # how dark everything but the answer is: a tint would be lost on things of its own colour


@dataclass(frozen=True)
class Scene:
    """A test sample and the masks (bool [H, W]) that the first of its sentences got, by the keys of ANSWERS."""

    sample: Sample
    masks: Mapping[str, np.ndarray]


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def write_page(path: str | Path, report: Mapping[str, Any], *, scenes: Sequence[Scene],
               latency: Mapping[str, Any]) -> None:
    """Write the page. report: as report.json; latency: the whole report of benchmarks/latency.py."""
    sections = [_headline(report), _checks(report["checks"]), _scenes(scenes), _latency(latency),
                _engines(report["engines"]), _origin(report)]
    backgrounds = "\n".join(f".photo{number} {{ background-image: url({_data_url('.jpg', scene.sample.image)}) }}"
                            for number, scene in enumerate(scenes))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TALENT Edge: from LoRA to the engine</title>
<style>
{STYLE}
{backgrounds}
</style>
</head>
<body>
<main>
<h1>TALENT Edge <small>from LoRA to the engine</small></h1>
<p>A tiny network, trained on one kind of scene, was LoRA-tuned to another (new colours, shapes, words and
backgrounds), merged, exported to ONNX in FP32, FP16 and INT8, and built into TensorRT engines:
in {report["seconds"]:.0f} seconds, on {text(report["device"]["cpu"])} with {report["device"]["cores"]} cores.</p>
{"".join(sections)}
</main>
</body>
</html>
"""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric_from: int) -> str:
    """Cells are HTML; columns from `numeric_from` on are numbers."""
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{' class=n' if i >= numeric_from else ''}>{cell}</{tag}>"
                                for i, cell in enumerate(cells)) + "</tr>"
    body = "\n".join(line(row, "td") for row in rows)
    return f"<div class=scroll><table>\n<thead>{line(header, 'th')}</thead>\n<tbody>{body}</tbody>\n</table></div>\n"


def _headline(report: Mapping[str, Any]) -> str:
    miou, trainable, total = report["miou"], report["trainable_parameters"], report["total_parameters"]
    sizes = {precision: " + ".join(megabytes(e["bytes"]) for e in report["engines"]
                                   if e["graph"] == "vision" and e["precision"] == precision)
             for precision in ("fp16", "int8")}
    cards = [
        (f"{score(miou['before'])} → {score(miou['after'])}",
         f"mIoU on the new kind of scene, before and after tuning ({miou['after'] - miou['before']:+.4f})", "wide"),
        (score(miou["fp16"]), f"FP16: {miou['fp16'] - miou['after']:+.4f} mIoU against PyTorch", ""),
        (score(miou["int8"]), f"INT8: {miou['int8'] - miou['after']:+.4f} mIoU against PyTorch", ""),
        (f"{trainable / total:.1%}", f"trainable: {trainable:,} of {total:,} parameters", ""),
        (f"{sizes['fp16'] or 'none'} → {sizes['int8'] or 'none'}", "vision engine, FP16 and INT8", "wide"),
        (f"{report['merge_max_abs']:.1e}", "largest change of a logit by merging LoRA", "")]
    return "<section class=cards>" + "".join(
        f'<div class="card {kind}"><b>{text(value)}</b><span>{text(label)}</span></div>'
        for value, label, kind in cards) + f"</section>\n{_miou_bars(miou)}"


def _miou_bars(miou: Mapping[str, float]) -> str:
    bars = "".join(f'<div class=bar><span>{label}</span><div class=track><i class="{"dim" if key == "before" else ""}" '
                   f'style="width:{100 * miou[key]:.2f}%"></i></div><b>{score(miou[key])}</b></div>'
                   for key, label in ANSWERS.items())
    return f"<section class=bars aria-label=mIoU>{bars}</section>\n"


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [[text(check["name"]), text(check["received"]), text(check["expected"]),
             "<span class=pass>pass</span>" if check["passed"] else "<span class=fail>FAIL</span>"] for check in checks]
    return "<h2>Required figures</h2>\n" + _table(["", "measured", "required", ""], rows, numeric_from=9)


def _scenes(scenes: Sequence[Scene]) -> str:
    cards = []
    for number, scene in enumerate(scenes):
        tiles = [_tile(number, "photo", "", scene.sample, None)]
        for key, label in ANSWERS.items():
            overlap = f"IoU {iou(scene.masks[key], scene.sample.mask):.2f}"
            tiles.append(_tile(number, label, overlap, scene.sample, scene.masks[key]))
        cards.append(f"<h3>“{text(scene.sample.expressions[0])}”</h3>\n<div class=tiles>{''.join(tiles)}</div>\n")
    return (f"<h2>The first {len(scenes)} scenes of the test split</h2>\n"
            "<p>Lit: the answer. <span class=key style='border:3px solid #ffdd33;outline:1px solid #222'></span> "
            "Outlined: the object that is meant. The scenes are not chosen; each is asked its first sentence.</p>\n"
            f"{''.join(cards)}")


def _tile(number: int, label: str, overlap: str, sample: Sample, mask: np.ndarray | None) -> str:
    picture = ""
    if mask is not None:
        picture = f'<img alt="answer {text(label)}" src="{_data_url(".png", _layer(sample, mask))}">'
    return (f'<figure><div class="photo photo{number}">{picture}</div>'
            f"<figcaption>{text(label)}<b>{overlap}</b></figcaption></figure>")


def _layer(sample: Sample, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] RGBA to lie over the photo: the answer tinted, the ground truth outlined."""
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[~mask, 3] = round(255 * DIM)
    width = max(2, round(max(mask.shape) / 200))
    edges, _ = cv2.findContours(sample.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(layer, edges, -1, (0, 0, 0, 200), width + 3)
    cv2.drawContours(layer, edges, -1, (*OUTLINE, 255), width)
    return layer


def _data_url(suffix: str, image: np.ndarray) -> str:
    """uint8 RGB or RGBA as a data URL."""
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, code), options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode {list(image.shape)} as {suffix}")
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _latency(latency: Mapping[str, Any]) -> str:
    rows, settings = latency["rows"], latency["settings"]
    keys = "".join(f"<span><span class=key style='background:{STAGE_COLOURS[stage]}'></span> {stage}</span>"
                   for stage in STAGES)
    longest = max(row["stages"][WHOLE]["p50_ms"] for row in rows)
    bars = "".join(_latency_bar(row, longest) for row in rows)
    lines = [[text(row["name"]), "p50<br>p90<br>p99",
              *("<br>".join(milliseconds(row["stages"][stage][name]) for name in PERCENTILES)
                for stage in (*STAGES, WHOLE))] for row in rows]
    notes = [EMULATED[0].upper() + EMULATED[1:] + "."] if any(row["emulated"] for row in rows) else []
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in latency["not_run"]:
        reasons.setdefault((entry["backend"], entry["reason"]), []).append(entry["precision"].upper())
    notes += [f"Not run: {backend} {', '.join(precisions)}: {reason}"
              for (backend, reason), precisions in reasons.items()]
    return (f"<h2>Latency</h2>\n<p>Milliseconds from a {settings['photo']} px photo and a sentence to the mask: "
            f"{settings['rounds']} rounds of {settings['samples']} samples, {settings['threads']} CPU threads; "
            f"the bars are medians, the table has the 50th, 90th and 99th percentile.</p>\n"
            f"<p class=legend>{keys}</p>\n<section class=bars>{bars}</section>\n"
            + _table(["", "", *STAGES, WHOLE], lines, numeric_from=2)
            + "".join(f"<p class=note>{text(note)}</p>\n" for note in notes))


def _latency_bar(row: Mapping[str, Any], longest: float) -> str:
    stages = row["stages"]
    parts = "".join(f'<i title="{stage}" style="width:{100 * stages[stage]["p50_ms"] / longest:.2f}%;'
                    f'background:{STAGE_COLOURS[stage]}"></i>' for stage in STAGES)
    return (f"<div class=bar><span>{text(row['name'])}</span><div class=track>{parts}</div>"
            f"<b>{milliseconds(stages[WHOLE]['p50_ms'])} ms</b></div>")


def _engines(engines: Sequence[Mapping[str, Any]]) -> str:
    rows = [[text(engine["graph"]), engine["precision"].upper(), text(f"{engine['runtime']} {engine['version']}"),
             megabytes(engine["bytes"]), f"{engine['seconds']:.2f} s"] for engine in engines]
    header = ["graph", "precision", "built with", "size", "build time"]
    return (f"<h2>Engines</h2>\n{_table(header, rows, numeric_from=3)}"
            "<p class=note>TensorRT-RTX builds engines without a GPU, and needs one to run them: an engine that has no "
            "row in the latency table was built here and not run. The accuracy of FP16 and INT8 was measured on the "
            "ONNX files that the engines are built from, in ONNX Runtime. Each bundle has both graphs; the text graph "
            "of the INT8 bundle is FP16.</p>\n")


def _origin(report: Mapping[str, Any]) -> str:
    device = {name: value for name, value in report["device"].items() if value is not None}
    rows = [[text(name), text(value)] for name, value in
            [("commit", report["commit"]), *device.items(), *report["versions"].items()]]
    return "<h2>Where this came from</h2>\n" + _table(["", ""], rows, numeric_from=9)


STYLE = BASE_STYLE + """
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; margin: 1.5rem 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem;
  display: flex; flex-direction: column; gap: .2rem }
.card.wide { grid-column: span 2 } .card b { font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: .88rem }
.track { overflow: hidden } .track i { background: var(--accent) } .track i.dim { opacity: .45 }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: .6rem } figure { margin: 0 }
.photo { aspect-ratio: 1; background-size: cover; border-radius: 6px; overflow: hidden }
.photo img { display: block; width: 100%; height: 100% }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: .4rem; font-size: .8rem;
  color: var(--soft); padding-top: .2rem } figcaption b { color: var(--ink); font-variant-numeric: tabular-nums }
@media (max-width: 800px) { .cards { grid-template-columns: 1fr 1fr } .tiles { grid-template-columns: repeat(3, 1fr) }
  .bar { grid-template-columns: 8rem 1fr 4.5rem } }
"""
