"""The report's section on closed loop: success rates, and films of what happened beside what the model imagined."""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from motus_jax.evaluation import page

WORDS = {"vla": "act (VLA)", "plan": "plan (best of several)"}

TEXT = (
    "<p>The policies act in the simulator from starts that nothing was trained on; they look and plan anew after half "
    "of every chunk. Small print is the 95 % Wilson interval. Progress is the mean share of a task's stages that were "
    "reached. All policies have the same starts.</p>"
)


def section(closed_loop: Mapping[str, Any], workdir: pathlib.Path, folder: pathlib.Path) -> str:
    """The section; copies the films that are there into the page's `media`.

    Args:
      closed_loop: the entry of metrics.json.
      workdir: where the films' paths begin.
      folder: of the page.
    """
    head = ["Policy", "Success", "Progress", "Seconds an answer", *map(_words, closed_loop["tasks"])]
    rows = [_row(name, entry, closed_loop["tasks"]) for name, entry in closed_loop["policies"].items()]
    films = [film for film in closed_loop.get("videos", ()) if (workdir / film["file"]).is_file()]
    for film in films:
        shutil.copy(workdir / film["file"], folder / "media" / pathlib.PurePosixPath(film["file"]).name)
    parts = [TEXT, _late(closed_loop.get("delay")), page.table(head, rows), _films(films)]
    return page.section("closed_loop", "Closed loop", "".join(parts), closed_loop["beats_baselines"])


def _late(delay: Mapping[str, Any] | None) -> str:
    """What is said where answers were not there at once, or chunks faded into each other."""
    if not delay or (not delay["actions"] and delay["fusion"] == "latest"):
        return ""
    parts = []
    if delay["actions"]:
        told = f"which the question tells it ({_words(delay['prefix'])})" if delay["prefix"] else "which it is not told"
        parts.append(f"The model's answers come {delay['actions']} actions late; the robot executes those of the chunk "
                     f"before meanwhile, {told}.")  # fmt: skip
    if delay["fusion"] != "latest":
        parts.append(f"Where chunks overlap, what is commanded is their {_words(delay['fusion'])}.")
    return f"<p>{page.escape(' '.join(parts))}</p>"


def _row(name: str, entry: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    missing = f", {entry['missing']} missing" if entry.get("missing") else ""
    low, high = (f"{100 * edge:.0f} %" for edge in entry["interval"])
    own = [entry["tasks"].get(task) for task in tasks]
    seconds = entry.get("seconds_per_answer")
    return [
        page.escape(_words(name)),
        f"<b>{100 * entry['value']:.0f} %</b><small>{low} to {high}{missing}</small>",
        f"{100 * entry['reward']:.0f} %",
        "–" if seconds is None else f"{seconds:.2f}",
        *("–" if one is None else f"{one['successes']} of {one['episodes']}" for one in own),
    ]


def _films(films: Sequence[Mapping[str, Any]]) -> str:
    if not films:
        return ""
    cells = [
        page.video(
            f"media/{pathlib.PurePosixPath(film['file']).name}",
            f"{_words(film['policy'])}, {'success' if film['success'] else 'failure'}: “{film['instruction']}” (start "
            f"{film['seed']})",
        )
        for film in films
    ]
    text = (
        "<p>Left what was executed, right what the world model imagines of the same actions, anew from the real "
        "picture at every look.</p>"
    )
    return f'{text}<div class="grid two">{"".join(cells)}</div>'


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))
