"""A run's folder -> README.md beside weights that leave it: what the hub and people read of a model.

Says what the files say, and no more: base, method, data and rewards by name, the learning curves, the evaluations with
their intervals, settings, versions. Paths of this machine are shortened to names; addresses of servers are left out.
The licence is the user's to choose. To say more: a section of `render_card`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config import Occasion, RunConfig
from rl.configuration.loading import load
from rl.configuration.resuming import may_differ
from rl.configuration.yaml_text import write_mapping
from rl.errors import ConfigError
from rl.paths import resolve_path
from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval
from rl.runs.summary import Summary, installed_versions, read_summary

CURVE = "curve.png"
_PRIVATE = ("generator.served_model", "evaluation.data_dir")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is made of. name: of the model. base: folder or hub id. is_adapter: the weights are an adapter alone.
    checkpoint: which of the run's. config, summary: of the training run, None where there is none."""

    name: str
    base: str
    is_adapter: bool
    checkpoint: str = ""
    config: RunConfig | None = None
    summary: Summary | None = None
    has_curve: bool = False


def write_card(folder: Path, name: str, base: str, run: RunFolder | None, checkpoint: str = "") -> None:
    """Write README.md and, if the run has one, its curve beside the weights in `folder`."""
    is_adapter = (folder / "adapter_config.json").is_file()
    has_curve = run is not None and run.curve_file.is_file()
    if run is not None and has_curve:
        shutil.copyfile(run.curve_file, folder / CURVE)
    card = Card(name, base, is_adapter, checkpoint, _config_of(run), _summary_of(run), has_curve)
    (folder / "README.md").write_text(render_card(card), encoding="utf-8")


def render_card(card: Card) -> str:
    """Front matter that the hub validates, and Markdown."""
    sections = [f"# {card.name}", _introduction(card)]
    if card.has_curve:
        sections.append(f"![reward, held-out accuracy, entropy and refused groups over the steps]({CURVE})")
    if card.summary is not None:
        sections += ["## Evaluation", _evaluation(card.summary, card.checkpoint)]
    if card.config is not None:
        sections += ["## Training", "\n".join(f"- {line}" for line in _training(card.config)), _command(card.config)]
    versions = installed_versions() if card.summary is None else card.summary.versions
    sections += ["## Versions", ", ".join(f"{package} {version}" for package, version in versions.items())]
    return _front_matter(card) + "\n" + "\n\n".join(sections) + "\n"


def _front_matter(card: Card) -> str:
    is_rl = card.config is not None and bool(card.config.rewards)
    tags = ["otherhalf", *(["reinforcement-learning"] if is_rl else []), *(["lora"] if card.is_adapter else [])]
    values: dict[str, Any] = {"library_name": "peft" if card.is_adapter else "transformers",
                              "pipeline_tag": "text-generation", "tags": tags}
    if is_hub_id(card.base):
        values |= {"base_model": card.base, "base_model_relation": "adapter" if card.is_adapter else "finetune"}
    if card.config is not None and is_hub_id(card.config.data.path):
        values["datasets"] = [card.config.data.path]
    licence = "# license: choose one (such as apache-2.0); the base model's may bind you\n"
    return f"---\n{licence}{write_mapping(values)}---\n"


def is_hub_id(path: str) -> bool:
    """Whether a model or data set is named as on the hub: owner and name, and no folder or file here."""
    return _HUB_ID.fullmatch(path) is not None and not resolve_path(path).exists()


def public_name(path: str) -> str:
    """A hub id as it is, of a path of this machine its last part."""
    return path if is_hub_id(path) else re.split(r"[\\/]", path.rstrip("/\\"))[-1]


def _introduction(card: Card) -> str:
    base = f"[{card.base}](https://huggingface.co/{card.base})" if is_hub_id(card.base) else public_name(card.base)
    kind = "A LoRA adapter for" if card.is_adapter else "The weights of"
    steps = f" for {card.summary.steps} steps" if card.summary is not None else ""
    method = "" if card.config is None else (
        " by reinforcement learning" if card.config.rewards else " by on-policy distillation")
    checkpoint = f" This is its checkpoint {card.checkpoint}." if card.checkpoint else ""
    return f"{kind} {base}, trained{steps}{method} with otherhalf.{checkpoint}"


def _evaluation(summary: Summary, checkpoint: str) -> str:
    before = _named(summary.held_out_before, summary.benchmarks_before)
    after = _named(summary.held_out_after, summary.benchmarks_after)
    if not before and not after:
        return "Not evaluated."
    lines = [f"| | before training | after step {summary.steps} |", "|---|---|---|"]
    for name in dict.fromkeys((*before, *after)):
        lines.append(f"| {name} | {_interval(before.get(name))} | {_interval(after.get(name))} |")
    text = "\n".join([*lines, "", "In brackets 95% bootstrap intervals over questions."])
    best = summary.best
    if best is not None and checkpoint == f"step-{best.step:06d}" and best.step != summary.steps:
        text += f" Of the weights here, those of step {best.step}, {best.metric} was {best.value:.3f}."
    return text


def _named(
    held_out: Mapping[str, Interval] | None, benchmarks: Mapping[str, Interval] | None
) -> dict[str, Interval]:
    return {f"held-out {name}": interval for name, interval in (held_out or {}).items()} | dict(benchmarks or {})


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _training(config: RunConfig) -> Iterator[str]:
    rewards = ", ".join(f"`{public_name(reward.use)}` (weight {reward.weight:g})" for reward in config.rewards)
    loss, sampling = config.loss, config.sampling
    yield f"rewards: {rewards or 'none'}"
    if config.teacher is not None:
        yield f"on-policy distillation from {public_name(config.teacher.path)}"
    answers = "gold answers read" if config.data.columns.answer is not None else "no gold answers read"
    yield f"data: {public_name(config.data.path)}, {answers}"
    yield (f"advantages `{config.advantage.name}`, loss `{loss.name}` with aggregation `{loss.aggregation}`, clip "
           f"{loss.clip_low:g} and {loss.clip_high:g}, KL weight {loss.kl_weight:g}")
    if config.selection.low is not None or config.selection.high is not None:
        yield (f"groups train with a normalised semantic entropy between {_bound(config.selection.low, 0)} and "
               f"{_bound(config.selection.high, 1)}")
    yield (f"{sampling.questions_per_step} questions x {sampling.group_size} completions a step, at most "
           f"{sampling.max_completion_tokens} tokens, temperature {sampling.temperature:g}")
    lora = config.lora
    yield (f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}" if lora.enabled else "all parameters") + (
        f"; AdamW, learning rate {config.optim.lr:g} ({config.optim.schedule}); seed {config.seed}")


def _bound(value: float | None, otherwise: float) -> str:
    return f"{otherwise if value is None else value:g}"


def _command(config: RunConfig) -> str:
    changed = _changed(RunConfig().model_dump(mode="json"), config.model_dump(mode="json"))
    return ("With this as `run.yaml`, `accelerate launch rl/train.py --config run.yaml`:\n\n"
            f"```yaml\n{write_mapping(changed)}```")


def _changed(default: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What differs from the defaults, but for where results and servers are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key, before = f"{prefix}{name}", default.get(name)
        if may_differ(RunConfig, key) in (Occasion.ALWAYS, Occasion.SERVERS) or key in _PRIVATE:
            continue
        if isinstance(value, Mapping):
            if below := _changed(before if isinstance(before, Mapping) else {}, value, f"{key}."):
                found[name] = below
        elif value != before:
            found[name] = _shown(value)
    return found


def _shown(value: Any) -> Any:
    """Absolute paths by their last part."""
    if isinstance(value, list):
        return [_shown(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _shown(entry) for name, entry in value.items()}
    return public_name(value) if isinstance(value, str) and value.startswith(("/", "~")) else value


def _config_of(run: RunFolder | None) -> RunConfig | None:
    """None for what is no training run, such as a warm-up."""
    try:
        return None if run is None else load(run.config_file, [])
    except ConfigError:
        return None


def _summary_of(run: RunFolder | None) -> Summary | None:
    try:
        return None if run is None else read_summary(run)
    except (FileNotFoundError, ValueError):  # not at its end; a warm-up's
        return None
