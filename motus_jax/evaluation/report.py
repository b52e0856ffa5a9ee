"""One static page about a run: metric table, curves, and for each mode videos, strips and action plots.

  python -m motus_jax.evaluation.report --workdir=runs/demo      writes runs/demo/report/index.html

Reads what training (metrics.jsonl, timing.jsonl) and evaluation (metrics.json, evaluation_examples.npz) left in the
workdir; needs no model and no data set.
"""

import argparse
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax.evaluation import acting_page, charts, page, results
from motus_jax.evaluation.charts import number
from motus_jax.evaluation.comparison import METRICS
from motus_jax.evaluation.results import Examples
from motus_jax.evaluation.runner import OTHER_ACTIONS
from motus_jax.modes import MODES, Mode, Role
from motus_jax.sampling import pictures

STRIPS, PLOTS = 2, 2
"""How many of each a mode's section shows."""

VIDEOS = {1: ("grid small", 5), 2: ("grid", 3), 3: ("grid two", 4)}
"""By how many pictures stand side by side: the style of the grid, and how many videos it holds."""

PAUSE_SECONDS = 0.8
"""Videos rest this long on their last frame before they start again."""

TITLES = {
    "psnr": "PSNR",
    "moving_psnr": "PSNR, moving pixels",
    "ssim": "SSIM",
    "normalised_mse": "Action error, normalised MSE",
    "joint_error": "Joint error",
    "gripper_error": "Gripper error",
}

_ROLES = {Role.DENOISED: "predicted", Role.GIVEN: "given", Role.NOISE: "left as noise"}


def write_report(workdir: Path) -> Path:
    """Writes `workdir/report/` and returns its index.html; an earlier report is replaced only by a complete one.

    Raises:
      UserError: the run was not evaluated yet.
    """
    found = results.read_metrics(workdir / results.METRICS_FILE)
    examples_file = workdir / results.EXAMPLES_FILE
    if not examples_file.is_file():
        raise UserError(f"{examples_file} not found: run `python -m motus_jax.evaluate --workdir={workdir}` first")
    folder, partial = workdir / "report", workdir / "report.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "media").mkdir(parents=True)
    examples = Examples.load(examples_file)
    found["modes"] = {mode: found["modes"][mode] for mode in sorted(found["modes"], key=_place)}
    sections = [_overview(found)]
    sections += [_mode_section(mode, entry, examples, partial) for mode, entry in found["modes"].items()]
    if "cycle" in found:
        sections.append(_cycle_section(found["cycle"], examples))
    if "closed_loop" in found:
        sections.append(acting_page.section(found["closed_loop"], workdir, partial))
    sections += [_curves(workdir), _facts_section(found, workdir)]
    (partial / "index.html").write_text(page.page("Motus report", _header(found), "".join(sections)), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder / "index.html"


def _place(mode: str) -> tuple[bool, int]:
    """Order of the sections: that of the table of modes, but a mode that predicts both modalities comes last."""
    row = MODES[mode]
    return row.returns_video and row.returns_actions, list(MODES).index(mode)


def _header(found: Mapping[str, Any]) -> str:
    facts, modes = found["facts"], found["modes"]
    wins = sum(entry["beats_baselines"] for entry in modes.values())
    links = {"overview": "Overview", **{mode: _title(mode) for mode in modes}}
    links |= {"cycle": "Cycle"} if "cycle" in found else {}
    links |= {"closed_loop": "Closed loop"} if "closed_loop" in found else {}
    links |= {"training": "Training", "facts": "Run"}
    nav = "".join(f'<a href="#{anchor}">{page.escape(text)}</a>' for anchor, text in links.items())
    verdict = f"{wins} of {len(modes)} jobs beat their baselines"
    return (
        f"<h1>One model, {_word(len(modes))} jobs</h1>"
        "<p>Motus is one network of three experts (video, action, understanding) joined by one attention. The same "
        f"{facts['parameters'] / 1e6:.1f} million parameters act, imagine, invert, generate and predict jointly; a job "
        "is chosen by which modality is noise and which is given. Everything below is measured on "
        f"{facts['chunks']} moments of {facts['episodes']} robot episodes that the model has never seen.</p>"
        f"{page.pill(wins == len(modes), verdict, verdict)}"
        f"<nav>{nav}</nav>"
    )


def _overview(found: Mapping[str, Any]) -> str:
    rows = []
    for mode, entry in found["modes"].items():
        shown = [name for name, comparison in entry["comparisons"].items() if comparison["primary"]]
        for place, metric in enumerate(shown):
            comparison = entry["comparisons"][metric]
            best = comparison["best_baseline"]
            name = f'<a href="#{mode}"><b>{page.escape(_title(mode))}</b></a>' if place == 0 else ""
            rows.append([
                name,
                f"{TITLES[metric]}<small>{METRICS[metric].better} is better</small>",
                f"<b>{_value(entry['metrics'][metric])}</b><small>{_interval(entry['metrics'][metric])}</small>",
                f"{_value(entry['baselines'][best][metric])}<small>{page.escape(_words(best))}</small>",
                f"{_signed(comparison['differences'][best])}<small>{_interval(comparison['differences'][best])}</small>",
                page.pill(comparison["beats"], "better", "not better"),
            ])  # fmt: skip
        if "actions_of_another_episode" in entry:
            rows.append(_listens_row(entry["actions_of_another_episode"], entry["metrics"]))
    note = (
        '<p class="soft">Small print under a number is its 95 % interval (bootstrap over whole episodes). The '
        "difference is paired, chunk by chunk, with the best baseline; a job counts as better when that interval "
        "excludes zero.</p>"
    )
    head = ["Job", "Measure", "Model", "Best baseline", "Difference", "Verdict"]
    return page.section("overview", "Overview", note + page.table(head, rows))


def _listens_row(listens: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    difference = listens["differences"]["moving_psnr"]
    return [
        "",
        f"Fed another episode's actions<small>{TITLES['moving_psnr']}</small>",
        f"<b>{_value(model['moving_psnr'])}</b><small>with its own actions</small>",
        f"{_value(listens['metrics']['moving_psnr'])}<small>with those of another episode</small>",
        f"{_signed(difference)}<small>{_interval(difference)}</small>",
        page.pill(listens["gets_worse"], "listens", "does not listen"),
    ]


def _mode_section(mode: str, entry: Mapping[str, Any], examples: Examples, folder: Path) -> str:
    row = MODES[mode]
    roles = {"current picture": "given", "instruction": "given", "state": "given"}
    roles |= {"future video": _ROLES[row.video], "actions": _ROLES[row.action]}
    chips = "".join(f"<span>{name}: <b>{role}</b></span>" for name, role in roles.items())
    parts = [f"<p>{_sentence(row)}</p>", f'<div class="roles">{chips}</div>']
    if mode in examples.predictions:
        parts += [_videos(mode, row, examples, folder), _strips(mode, row, examples, folder)]
        if row.returns_actions:
            parts.append(_plots(mode, examples))
    parts += [_interval_charts(entry), _comparison_details(entry)]
    if "joints" in entry:
        parts.append(_joint_details(entry["joints"]))
    return page.section(mode, _title(mode), "".join(parts), entry["beats_baselines"])


def _sentence(row: Mode) -> str:
    return page.escape(row.summary[0].upper() + row.summary[1:] + ".")


def _videos(mode: str, row: Mode, examples: Examples, folder: Path) -> str:
    """Real beside imagined; where only actions are predicted, what the model was shown."""
    columns = {"real" if row.returns_video else "given": examples.frames}
    if row.returns_video:
        columns["imagined"] = examples.predictions[mode]["video"]
    if mode + OTHER_ACTIONS in examples.predictions:
        columns["with other actions"] = examples.predictions[mode + OTHER_ACTIONS]["video"]
    if row.video is Role.NOISE:
        columns = {"given": examples.frames[:, :1]}
    kind, count = VIDEOS[len(columns)]
    pause = round(PAUSE_SECONDS * examples.video_hz)
    cells = []
    for index in range(min(count, len(examples.frames))):
        clip = pictures.side_by_side({title: frames[index] for title, frames in columns.items()})
        file = f"media/{mode}_{index}.mp4"
        clip = np.concatenate([clip, np.repeat(clip[-1:], pause, axis=0)])
        pictures.write_mp4(folder / file, clip, examples.video_hz, scale=1)
        cells.append(page.video(file, _caption(examples, index)))
    return f'<div class="{kind}">{"".join(cells)}</div>'


def _strips(mode: str, row: Mode, examples: Examples, folder: Path) -> str:
    if not row.returns_video:
        return ""
    cells = []
    for index in range(min(STRIPS, len(examples.frames))):
        rows = {"real": examples.frames[index], "imagined": examples.predictions[mode]["video"][index]}
        file = f"media/{mode}_strip_{index}.jpg"
        image = pictures.strip(rows, examples.video_hz, error_of=("real", "imagined"))
        pictures.write_image(folder / file, image)
        text = f"Real, imagined, and where they differ. {_caption(examples, index)}"
        cells.append(
            f'<figure class="strip"><img src="{file}" alt="{page.escape(text)}" loading="lazy">'
            f'<figcaption class="under">{page.escape(text)}</figcaption></figure>'
        )
    return "".join(cells)


def _plots(label: str, examples: Examples, count: int = PLOTS) -> str:
    cells = []
    for index in range(min(count, len(examples.frames))):
        figure = pictures.action_figure(
            examples.actions[index],
            {"predicted": examples.predictions[label]["actions"][index]},
            examples.names,
            examples.units,
            examples.action_hz,
            examples.state[index],
            examples.mask[index],
        )
        text = f"Real and predicted targets of every joint; the dot is where it stands now. {_caption(examples, index)}"
        cells.append(
            f'<figure><div class="plots">{_svg(figure)}</div>'
            f'<figcaption class="under">{page.escape(text)}</figcaption></figure>'
        )
    return "".join(cells)


def _svg(figure: Figure) -> str:
    """The figure as inline SVG without a background, its black turned into the page's text colour."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = file.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def _interval_charts(entry: Mapping[str, Any]) -> str:
    shown = []
    for metric, own in entry["metrics"].items():
        rows = [("this model", own, True)]
        if "actions_of_another_episode" in entry and metric in entry["actions_of_another_episode"]["metrics"]:
            rows.append(("with other actions", entry["actions_of_another_episode"]["metrics"][metric], False))
        rows += [
            (_words(name), scores[metric], False) for name, scores in entry["baselines"].items() if metric in scores
        ]
        bars = [
            charts.Bar(label, scores["value"], *scores["interval"], emphasis)
            for label, scores, emphasis in rows
            if scores["value"] is not None
        ]
        if bars:
            shown.append(charts.interval_chart(TITLES[metric], own["unit"], METRICS[metric].better, bars))
    return f'<div class="grid fill">{"".join(shown)}</div>'


def _comparison_details(entry: Mapping[str, Any]) -> str:
    rows = []
    for metric, comparison in entry["comparisons"].items():
        for place, (name, difference) in enumerate(comparison["differences"].items()):
            best = " (best)" if name == comparison["best_baseline"] else ""
            rows.append([
                TITLES[metric] if place == 0 else "",
                f"{page.escape(_words(name))}{best}",
                _value(entry["baselines"][name][metric]),
                _signed(difference),
                _interval(difference),
                page.pill(difference["beats"], "better", "not better"),
            ])  # fmt: skip
    head = ["Measure", "Baseline", "Its value", "Model - baseline", "95 % interval", "Model is"]
    return f"<details><summary>Every comparison</summary>{page.table(head, rows)}</details>"


def _joint_details(joints: Sequence[Mapping[str, Any]]) -> str:
    rivals = [name for name in joints[0]["mean_absolute_error"] if name != "model"]
    rows = []
    for joint in joints:
        errors = joint["mean_absolute_error"]
        own = f"<b>{number(errors['model']['value'])}</b> <small>{_interval(errors['model'])}</small>"
        rows.append([page.escape(joint["name"]), joint["unit"], own, *(number(errors[r]["value"]) for r in rivals)])
    table = page.table(["Joint", "Unit", "Model", *map(_words, rivals)], rows)
    return f"<details><summary>Mean absolute error of every joint</summary>{table}</details>"


def _cycle_section(cycle: Mapping[str, Any], examples: Examples) -> str:
    real = cycle["inverse_dynamics_on_real_video"]
    own = cycle["metrics"]["normalised_mse"]
    bars = [
        charts.Bar("from imagined video", own["value"], *own["interval"], True),
        charts.Bar("from real video", real["value"], *real["interval"], False),
    ]
    for name, scores in cycle["baselines"].items():
        bars.append(
            charts.Bar(_words(name), scores["normalised_mse"]["value"], *scores["normalised_mse"]["interval"], False)
        )
    chart = charts.interval_chart(TITLES["normalised_mse"], "", "lower", bars)
    text = (
        "<p>Actions go into the world model, and its imagined video into inverse dynamics: the actions that come out "
        "should be those that went in. What the imagination costs is the step from the second row to the first.</p>"
    )
    plots = _plots("cycle", examples, count=1) if "actions" in examples.predictions.get("cycle", {}) else ""
    content = f'{text}<div class="grid fill">{chart}</div>{plots}'
    return page.section("cycle", "Cycle: actions to video and back", content, cycle["beats_baselines"])


def _curves(workdir: Path) -> str:
    curve, timing = _read_lines(workdir / "metrics.jsonl"), _read_lines(workdir / "timing.jsonl")

    def series(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        return {
            title: sorted({row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float)}.items())
            for key, title in names.items()
        }

    def bands(stream: str) -> dict[str, str]:
        keys = sorted({key for row in curve for key in row if key.startswith(f"loss/{stream}/tau_")})
        return {key: _band(key) for key in keys}

    parts = {key: key.split("/")[1] for row in curve[:1] for key in row if key.startswith("grad_norm/")}
    shown = [
        charts.line_chart("Training loss", series(curve, {"loss/video": "video", "loss/action": "action"}), log=True),
        charts.line_chart(
            "Held-out loss by job", series(curve, {f"val/{mode}/loss": _title(mode) for mode in MODES}), log=True
        ),
        charts.line_chart("Video loss by noise level", series(curve, bands("video")), log=True),
        charts.line_chart("Action loss by noise level", series(curve, bands("action")), log=True),
        charts.line_chart("Examples per second", series(timing, {"examples_per_second": "examples/s"})),
        charts.line_chart("Gradient norm by part", series(curve, parts), log=True),
        charts.line_chart("Learning rate", series(curve, {"lr": "learning rate"})),
    ]
    text = '<p class="soft">The numbers beside the names are the last values.</p>'
    return page.section("training", "Training", f'{text}<div class="grid two">{"".join(shown)}</div>')


def _facts_section(found: Mapping[str, Any], workdir: Path) -> str:
    facts, machine = found["facts"], found["machine"]
    shown = {
        "Parameters": f"{facts['parameters']:,}",
        "Training steps": f"{facts['step']:,}",
        **_training_facts(workdir),
        "Held-out chunks": f"{facts['chunks']} of {facts['episodes']} episodes",
        "Training chunks the baselines know": f"{facts['train_chunks']:,}",
        "Evaluation": f"{found['seconds']:.0f} s",
        "Sampling": ", ".join(f"{name} {value}" for name, value in facts["sampling"].items()),
        "Processor": f"{machine['processor']}, {machine['cores']} cores",
        "Device": f"{machine['devices']} x {machine['device']}",
        "Memory of the machine": f"{machine['memory_gib']} GiB",
        "Software": f"jax {machine['jax']}, Python {machine['python']}",
    }
    definitions = "".join(
        f"<div><dt>{page.escape(k)}</dt><dd>{page.escape(v)}</dd></div>" for k, v in found["definitions"].items()
    )
    details = f'<details><summary>What the numbers mean</summary><dl class="wide">{definitions}</dl></details>'
    return page.section("facts", "This run", page.facts(shown) + details)


def _training_facts(workdir: Path) -> dict[str, str]:
    rows = _read_lines(workdir / "timing.jsonl")
    speeds = [row["examples_per_second"] for row in rows if "examples_per_second" in row]
    memory = [row["peak_rss_gib"] for row in rows if "peak_rss_gib" in row]
    walls = [row["seconds"]["wall"] for row in rows if "wall" in row.get("seconds", {})]
    shown = {}
    if walls:
        shown["Training time"] = _duration(_total_wall(walls))
    if speeds:
        shown["Training speed"] = f"{np.median(speeds):.1f} examples/s"
    if memory:
        shown["Peak memory of training"] = f"{max(memory):.1f} GiB"
    return shown


def _total_wall(walls: Sequence[float]) -> float:
    """Seconds of all processes of a run: each counts from its own start, so the clock falls back at a restart."""
    ends = [now for now, after in zip(walls, [*walls[1:], 0.0]) if after < now]
    return sum(ends)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed while writing
            continue
    return rows


def _caption(examples: Examples, index: int) -> str:
    return f"Episode {examples.episode[index]}, frame {examples.frame[index]}: “{examples.instruction[index]}”"


def _band(key: str) -> str:
    place, count = (int(part) for part in key.rsplit("tau_", 1)[1].split("of"))
    return f"tau {place / count:g} to {(place + 1) / count:g}"


def _title(mode: str) -> str:
    return {"vla": "Act (VLA)"}.get(mode, _words(mode).capitalize())


def _words(name: str) -> str:
    return {"copy_last": "copy the last frame", "train_mean_residual": "add the mean change"}.get(
        name, name.replace("_", " ")
    )


def _word(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five")
    return words[count] if count < len(words) else str(count)


def _value(estimate: Mapping[str, Any]) -> str:
    unit = estimate["unit"]
    return f"{number(estimate['value'])}{f' {unit}' if unit in ('dB', 'rad') else ''}"


def _signed(estimate: Mapping[str, Any]) -> str:
    value = estimate["value"]
    return number(value) if value is None or value < 0 else f"+{number(value)}"


def _interval(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["interval"]
    return "no interval" if low is None else f"{number(low)} to {number(high)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m motus_jax.evaluation.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, type=Path, help="an evaluated run")
    print(f"{write_report(parser.parse_args(argv[1:]).workdir)} written")


if __name__ == "__main__":
    cli.run(main)
