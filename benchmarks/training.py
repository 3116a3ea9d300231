"""Time and memory of a training step: the official code's way and this project's, from the same weights.

All styles take the same steps on the same batch. They are timed in rounds, some steps of each style per round, the
order rotated, so that a clock that drops or another program that starts hits all of them alike. The losses of every
step are compared: a style that computes something else fails the run. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as latency.py, before PyTorch is loaded

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

if __name__ == "__main__":  # a script: its own folder, which has a module `kernels` as another package has, gives way
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.latency import describe_device  # noqa: E402
from benchmarks.official_style import OfficialStyle, official_losses  # noqa: E402
from benchmarks.rounds import aligned, rotations  # noqa: E402
from talent import provenance  # noqa: E402
from talent.config import ModelConfig, preset  # noqa: E402
from talent.errors import UserError, command, suggest  # noqa: E402
from talent.files import atomic_write, check_writable  # noqa: E402
from talent.losses import LossWeights, talent_losses  # noqa: E402
from talent.model import TalentModel, build_model  # noqa: E402
from talent.model.checkpointing import set_gradient_checkpointing  # noqa: E402
from talent.model.fast_linear import set_fast_linear  # noqa: E402
from talent.model.lora import select_trainable, set_training_mode  # noqa: E402
from talent.model.summary import parameter_table  # noqa: E402

OFFICIAL, OURS, BF16, CHECKPOINTING = "official", "ours", "bf16", "checkpointing"
STYLES = {OFFICIAL: "official style", OURS: "TALENT Edge", BF16: "TALENT Edge, bf16 autocast on CPU",
          CHECKPOINTING: "TALENT Edge, gradient checkpointing"}
EQUAL = (OFFICIAL, OURS, CHECKPOINTING)  # must have the same losses; bf16 rounds, its losses are only reported
TOLERANCE = 1e-3  # of the loss, relative: float32 in another order, carried on from step to step
LOSSES = ("total", "segmentation", "cpcl", "tccl")
# A tenth of the published one: from random weights, steps of 1e-4 throw the loss about, and rounding grows with it.
LEARNING_RATE = 1e-5
LAYER_SCALE = 0.5  # the presets start near 0, where the blocks hardly count
MEMORY_STEPS = 2  # the second has the optimiser's moments in memory
SEED = 0
PACKAGES = ("torch", "timm", "numpy")
MEGABYTE = 1 << 20
EXAMPLE = """example:
  python benchmarks/training.py --preset base --batch 2 --rounds 3 -o training.json
"""


def build_network(config: ModelConfig) -> TalentModel:
    """A seeded network in training mode, adapters and heads trainable as published; its numbers are random.

    The towers' linear layers keep the size of what passes them, as after training: with the first values of timm every
    token would attend to all others alike, and attention could be left out without moving the loss.
    """
    torch.manual_seed(SEED)
    model = build_model(config)
    for tower in (model.text, model.vision):
        for name, module in tower.named_modules():
            if isinstance(module, nn.Linear) and ".adapter." not in name:
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)
    select_trainable(model, tune="adapters", train_heads=True)
    set_training_mode(model)
    return model


def make_batch(config: ModelConfig, batch: int) -> dict[str, Tensor]:
    """A seeded batch: noise for pictures, a rectangle for the mask, three sentences of random words per sample.

    image [B, 3, S, S], tokens [B, 3, L] (the sentence, a positive, a negative one), mask [B, 1, S, S], valid bool [B].
    """
    generator = torch.Generator().manual_seed(SEED)
    side, length, vocabulary = config.image_size, config.context_length, config.vocab_size
    words = torch.randint(1, vocabulary - 2, (batch, 3, length), generator=generator)
    words[:, :, 0] = vocabulary - 2  # start
    ends = torch.randint(3, length, (batch, 3, 1), generator=generator)
    places = torch.arange(length).expand_as(words)
    tokens = torch.where(places < ends, words, torch.where(places == ends, vocabulary - 1, 0))
    mask = torch.zeros(batch, 1, side, side)
    mask[:, :, side // 4:side // 2, side // 3:2 * side // 3] = 1
    return {"image": torch.randn(batch, 3, side, side, generator=generator), "tokens": tokens, "mask": mask,
            "valid": torch.ones(batch, dtype=torch.bool)}


class Trainer:
    """One style: a network, its optimiser, and what a step does with them."""

    def __init__(self, style: str, model: TalentModel, batch: dict[str, Tensor]) -> None:
        self.style, self.model, self.batch = style, model, batch
        self.logits: Tensor | None = None  # of the last step
        official = style == OFFICIAL
        set_fast_linear(model, not official)
        set_gradient_checkpointing(model, style == CHECKPOINTING)
        self.forward: nn.Module = OfficialStyle(model) if official else model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, fused=None if official else True)

    def step(self) -> dict[str, float]:
        """Forward, losses, backward, optimiser: the losses before the update."""
        batch, weights = self.batch, LossWeights()
        tokens = batch["tokens"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.style == BF16):
            output = self.forward(batch["image"], tokens[:, 0], tokens[:, 1:])
        self.logits = output.logits.detach().float()
        if self.style == OFFICIAL:
            losses = official_losses(output, batch, weights)
        else:
            losses = talent_losses(output, output.contrast, batch, weights)
        if self.style == OFFICIAL:
            self.optimizer.zero_grad()  # here the official code drops the gradients of the step before
        losses.total.backward()
        self.optimizer.step()
        if self.style != OFFICIAL:
            self.optimizer.zero_grad()  # as soon as they are used, so that the next forward pass has their memory
        return {name: getattr(losses, name).item() for name in LOSSES}


def build_trainers(config: ModelConfig, batch: int, styles: Sequence[str] = tuple(STYLES)) -> dict[str, Trainer]:
    """A Trainer per style, from the same weights; the frozen ones are in memory once."""
    inputs = make_batch(config, batch)
    original = build_network(config)
    frozen = {id(parameter): parameter for parameter in original.parameters() if not parameter.requires_grad}
    return {style: Trainer(style, copy.deepcopy(original, dict(frozen)), inputs) for style in styles}


@dataclasses.dataclass
class Measured:
    """Of one style: the losses of every step, and of all but the first (which allocates) the time.

    first_logits: [B, 1, h, w] of the first step, when the weights are still the same. seconds: on the clock.
    cpu_seconds: of all threads together, which other programs on the machine disturb less.
    """

    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)
    first_logits: Tensor | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)


def measure_time(trainers: dict[str, Trainer], *, rounds: int, steps: int) -> dict[str, Measured]:
    """One step of each style that is not timed, then rounds x steps that are."""
    measured = {style: Measured() for style in trainers}
    names = list(trainers)
    with tqdm(total=len(names) * (1 + rounds * steps), desc="training", unit="step", leave=False,
              disable=None) as bar:
        for style in names:
            measured[style].losses.append(trainers[style].step())
            measured[style].first_logits = trainers[style].logits
            bar.update()
        for turn in rotations(names, rounds):
            for style in turn:
                for _ in range(steps):
                    start, cpu_start = time.perf_counter(), time.process_time()
                    measured[style].losses.append(trainers[style].step())
                    measured[style].seconds.append(time.perf_counter() - start)
                    measured[style].cpu_seconds.append(time.process_time() - cpu_start)
                    bar.update()
    return measured


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one style from the official style, the largest of each kind.

    loss: of the total, over the steps, relative. logits: of the first step, in units of the largest logit.
    """

    loss: float
    logits: float


def check_equality(measured: dict[str, Measured]) -> dict[str, Difference]:
    """How far each style is from the official style.

    Raises UserError where a style that should compute the same differs by more than TOLERANCE.
    """
    reference = measured[OFFICIAL]
    differences = {}
    for style, own in measured.items():
        loss = max(abs(losses["total"] - wanted["total"]) / abs(wanted["total"])
                   for losses, wanted in zip(own.losses, reference.losses, strict=True))
        distance = (own.first_logits - reference.first_logits).abs().max() / reference.first_logits.abs().max()
        differences[style] = Difference(loss, float(distance))
    for style in EQUAL:
        for what, value in (("losses", differences[style].loss), ("logits", differences[style].logits)):
            if not value <= TOLERANCE:
                raise UserError(f"the {what} of {STYLES[style]!r} are not those of {STYLES[OFFICIAL]!r}: expected a "
                                f"relative difference of at most {TOLERANCE:.0e}, received {value:.1e}, so that their "
                                "times cannot be compared; find out which part differs: python -m pytest "
                                "tests/benchmarks/test_training.py tests/talent")
    return differences


def resident_memory() -> dict[str, float]:
    """Memory of this process now and at most so far, in MB (2^20 bytes): VmRSS and VmHWM of Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise UserError("peak memory is read from /proc/self/status, which only Linux has; add --no-memory") from error
    values = {line.partition(":")[0]: line.partition(":")[2] for line in lines}
    return {name: int(values[key].split()[0]) * 1024 / MEGABYTE for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def measure_memory_here(config: ModelConfig, batch: int, style: str) -> dict[str, float]:
    """Peak memory of this process, which takes MEMORY_STEPS steps of one style and does nothing else."""
    trainer = build_trainers(config, batch, [style])[style]
    before = resident_memory()["now"]
    for _ in range(MEMORY_STEPS):
        trainer.step()
    peak = resident_memory()["peak"]
    return {"before_mb": before, "peak_mb": peak, "growth_mb": peak - before}


def measure_memory(arguments: argparse.Namespace, styles: Sequence[str]) -> dict[str, dict[str, float]]:
    """`measure_memory_here` of every style, each in a process of its own."""
    found = {}
    for style in tqdm(styles, desc="memory", unit="style", leave=False, disable=None):
        call = [sys.executable, str(Path(__file__).resolve()), "--preset", arguments.preset, "--batch",
                str(arguments.batch), "--threads", str(arguments.threads), "--memory-of", style]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"measuring the memory of {style!r} failed with exit code {done.returncode} (killed where "
                            f"it is negative: try a smaller --batch or --no-memory): {done.stderr.strip()[-500:]}")
        found[style] = json.loads(done.stdout.splitlines()[-1])
    return found


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole report, as `--output` writes it. Raises UserError where the losses differ."""
    config = network_config(arguments.preset)
    memory = measure_memory(arguments, list(STYLES)) if arguments.memory else {}
    with _limited(arguments.threads):
        trainers = build_trainers(config, arguments.batch)
        measured = measure_time(trainers, rounds=arguments.rounds, steps=arguments.steps)
    differences = check_equality(measured)
    rows = []
    for style, label in STYLES.items():
        own = measured[style]
        rows.append({"style": style, "label": label, "median_s": statistics.median(own.seconds),
                     "cpu_median_s": statistics.median(own.cpu_seconds), "seconds": own.seconds,
                     "cpu_seconds": own.cpu_seconds, "losses": own.losses, "loss_difference": differences[style].loss,
                     "logits_difference": differences[style].logits, **memory.get(style, {})})
    for row in rows:
        for ratio, figure in (("speed_ratio", "median_s"), ("cpu_speed_ratio", "cpu_median_s")):
            row[ratio] = rows[0][figure] / row[figure]
        if memory:
            row["memory_ratio"] = row["peak_mb"] / rows[0]["peak_mb"]
    return {"rows": rows, "preset": arguments.preset, "batch": arguments.batch, "rounds": arguments.rounds,
            "steps": arguments.steps, "threads": arguments.threads, "learning_rate": LEARNING_RATE,
            "layer_scale": LAYER_SCALE, "seed": SEED, "tolerance": TOLERANCE,
            "parameters": parameter_table(trainers[OURS].model), "model": config.to_dict(),
            "device": describe_device(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "commit": provenance.commit(), "versions": provenance.versions(*PACKAGES)}


def network_config(name: str) -> ModelConfig:
    """The preset without dropout, so that the styles can be compared, and with layer scales that count."""
    return dataclasses.replace(preset(name), dropout=0.0, layer_scale=LAYER_SCALE)


@contextlib.contextmanager
def _limited(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table(report: dict[str, Any]) -> str:
    """The report as text: a line per style, then the losses of every step, then how it was measured."""
    memory = "peak_mb" in report["rows"][0]
    lines = [["", "step s", "speed", "CPU s", "speed", *(["peak MB", "of official", "growth MB"] if memory else []),
              "losses differ by", "logits"]]
    for row in report["rows"]:
        cells = [row["label"], f"{row['median_s']:.2f}", f"{row['speed_ratio']:.2f}x", f"{row['cpu_median_s']:.2f}",
                 f"{row['cpu_speed_ratio']:.2f}x"]
        if memory:
            cells += [f"{row['peak_mb']:.0f}", f"{row['memory_ratio']:.2f}", f"{row['growth_mb']:.0f}"]
        lines.append([*cells, f"{row['loss_difference']:.1e}", f"{row['logits_difference']:.1e}"])
    text = aligned(lines, left=1)
    text += [f"loss of step {number}: " + ", ".join(f"{row['style']} {row['losses'][number]['total']:.6f}"
                                                    for row in report["rows"])
             for number in range(len(report["rows"][0]["losses"]))]
    text.append(f"preset {report['preset']}, batch {report['batch']}, {report['threads']} threads, "
                f"{report['device']['cpu']} ({report['cpu_capability']}); median of {report['rounds']} rounds x "
                f"{report['steps']} steps per style, interleaved, after one that is not counted; differences from "
                f"official style, over all steps (losses) and at the first (logits), in float32 at most "
                f"{report['tolerance']:.0e}")
    text.append("CPU s: of all threads together, which other programs on the machine disturb less than the clock")
    if memory:
        text.append(f"peak MB: most resident memory (VmHWM) of a process that takes {MEMORY_STEPS} steps of this style "
                    "alone; growth: the peak less what it held before the first step (libraries, weights, batch)")
    return "\n".join(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="training.py", description=__doc__.partition("\n")[0], epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--preset", default="base", help="tiny, small, base or large (default: %(default)s)")
    result.add_argument("--batch", type=int, default=2, metavar="N", help="samples per step (default: %(default)s)")
    result.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default: %(default)s)")
    result.add_argument("--steps", type=int, default=1, metavar="N", help="steps per style and round (default: 1)")
    result.add_argument("--threads", type=int, default=_cores(), metavar="N",
                        help="CPU threads (default: one per core)")
    result.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    result.add_argument("-o", "--output", type=Path, metavar="FILE", help="write everything measured, as JSON")
    result.add_argument("--memory-of", metavar="STYLE", help=argparse.SUPPRESS)
    return result


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise UserError for what no run can have, before anything is computed."""
    for name in ("batch", "rounds", "steps", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: expected at least 1, received {getattr(arguments, name)}")
    preset(arguments.preset)
    if arguments.output:
        check_writable(arguments.output)
    if arguments.memory_of and arguments.memory_of not in STYLES:
        raise UserError(f"--memory-of: expected one of {', '.join(STYLES)}, received {arguments.memory_of!r}"
                        f"{suggest(arguments.memory_of, STYLES)}")


@command("training.py")
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)
    if arguments.memory_of:
        with _limited(arguments.threads):
            found = measure_memory_here(network_config(arguments.preset), arguments.batch, arguments.memory_of)
        print(json.dumps(found))
        return 0
    report = benchmark(arguments)
    print(table(report))
    if arguments.output:
        with atomic_write(arguments.output) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote the numbers to {arguments.output}")
    else:
        print("wrote nothing; add -o training.json to keep the numbers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
