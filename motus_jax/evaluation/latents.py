"""What a latent-action model has learned: figures with intervals, and a page to look at.

  python -m motus_jax.evaluation.latents --workdir=runs/latent_action      writes runs/latent_action/latents/index.html

On held-out pairs whose real actions are known: how much of the real motion a linear reading of the latent actions
explains, beside equal numbers of the autoencoder's tokens, of the flow itself, and its mean; and how much better the
flow picture is painted from its own latent action than from another pair's. The page shows pairs, what each number
moves, and how numbers and real actions go together. `latents.json` holds the figures.
"""

import argparse
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float

from motus_jax import cli
from motus_jax.data import pipeline, run_path
from motus_jax.data.contract import Contract
from motus_jax.data.mixture import make_dataset, settings_of
from motus_jax.errors import UserError
from motus_jax.evaluation import alignment, charts, page
from motus_jax.evaluation.intervals import mean_interval
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.sampling import pictures
from motus_jax.train import set_up_jax
from motus_jax.training import checkpoint, workdir

LATENT, TOKENS, CELLS, MEAN = "latent action", "tokens, PCA", "flow, PCA", "flow, mean"
SEEN = ("flow", "frames")
"""What the model looks at."""
SHOWN = 6
STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Standard deviations by which a number is moved on the page."""
BATCH = 64
BEYOND = 1e-9


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Raises:
      UserError: the run is of another kind of model, or its data have no actions.
    """
    parser = argparse.ArgumentParser(
        prog="motus_jax.evaluation.latents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=run_path.of, help="run of experiments/latent_action.py")
    parser.add_argument("--out", help="folder that gets latents/ (default: the workdir)")
    parser.add_argument("--pairs", type=int, default=4096, help="training pairs of the probes (default: 4096)")
    parser.add_argument("--held_out", type=int, default=1024, help="held-out pairs (default: 1024)")
    arguments = parser.parse_args(argv[1:])
    for name in ("pairs", "held_out"):
        if getattr(arguments, name) < 2 * SHOWN:
            raise UserError(f"--{name}: expected at least {2 * SHOWN}, found {getattr(arguments, name)}")
    out = workdir.local_out(arguments.workdir, arguments.out) / "latents"
    set_up_jax(platform="")
    loaded = checkpoint.load_for_inference(arguments.workdir)
    if loaded.config.system != "latent_action":
        raise UserError(f"{arguments.workdir}: expected a latent-action model, found {loaded.config.system!r}")
    system = LatentActionSystem(loaded.config)
    train, test = (read(system, loaded, *each) for each in (("train", arguments.pairs), ("test", arguments.held_out)))
    found = figures(system, loaded, train, test) | {"step": loaded.step}
    write(out, found, system, loaded, train, test)
    print(f"{describe(found)}\n{out / 'index.html'} written", flush=True)


def read(system: LatentActionSystem, loaded: checkpoint.Loaded, split: str, limit: int) -> dict[str, np.ndarray]:
    """Pairs of a split: frames, flow, real actions, episodes, and what the model makes of them.

    Raises:
      UserError: the data have no actions.
    """
    settings = settings_of(loaded.config.data) | {"episodes": 0, "hide_actions": False}  # probes may see every label
    dataset = make_dataset(settings, split, contract=Contract.from_json(loaded.contract()))

    @jax.jit
    def look(batch: Mapping[str, Any]) -> dict[str, Any]:
        mean, _ = system.encode(loaded.params, loaded.frozen, batch)
        tokens = system.tokens(loaded.params, loaded.frozen, batch)
        flow = system.flow(loaded.frozen, batch)
        return {"mean": mean, "tokens": tokens.reshape(len(mean), -1), "flow": flow, "picture": system.picture(flow)}

    parts = []
    for batch in pipeline.eval_batches(dataset, BATCH, limit, seed=0):
        chosen = batch["valid"] & batch["action_mask"].any((1, 2))
        found = look({name: batch[name] for name in SEEN if name in batch})
        seen = {name: np.asarray(value) for name, value in found.items()}
        kept = {name: batch[name] for name in ("frames", "actions", "action_mask", "episode")}
        parts.append({name: value[chosen] for name, value in (kept | seen).items()})
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(rows["mean"]):
        raise UserError(f"{dataset.source.path}: expected pairs with actions in split {split!r}; found none")
    real = rows["action_mask"][:, 0].any(0)
    return rows | {"actions": rows["actions"][:, 0][:, real]}


def figures(
    system: LatentActionSystem, loaded: checkpoint.Loaded, train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """The numbers of `latents.json`."""
    dim = train["mean"].shape[1]
    cells = [alignment.flow_cells(rows["flow"]) for rows in (train, test)]
    tokens = alignment.principal(train["tokens"], dim)
    flows = alignment.principal(cells[0], dim)
    features = {
        LATENT: (train["mean"], test["mean"]),
        TOKENS: (tokens(train["tokens"]), tokens(test["tokens"])),
        CELLS: (flows(cells[0]), flows(cells[1])),
        MEAN: tuple(alignment.flow_mean(rows["flow"]) for rows in (train, test)),
    }
    shares = {
        name: alignment.explained(ours, train["actions"], theirs, test["actions"])
        for name, (ours, theirs) in features.items()
    }
    explained = {name: mean_interval(share, test["episode"]) for name, share in shares.items()}
    more = {
        name: mean_interval(shares[LATENT] - share, test["episode"]) for name, share in shares.items() if name != LATENT
    }
    painted = {name: _errors(system, loaded, test, order) for name, order in (("own", 0), ("another's", 1))}
    difference = mean_interval(painted["another's"] - painted["own"], test["episode"])
    errors = {name: mean_interval(values, test["episode"]) for name, values in painted.items()}
    return {
        "pairs": {"train": len(train["mean"]), "test": len(test["mean"])},
        "episodes": len(np.unique(test["episode"])),
        "dim": dim,
        "explained": {name: value._asdict() for name, value in explained.items()},
        "explained_more_than": {name: value._asdict() for name, value in more.items()},
        "aligned": bool(min(value.low for value in more.values()) > 0),
        "painted": {name: value._asdict() for name, value in errors.items()},
        "painted_difference": difference._asdict(),
        "informed": bool(difference.low > 0),
    }


def _errors(
    system: LatentActionSystem, loaded: checkpoint.Loaded, rows: Mapping[str, np.ndarray], shift: int
) -> Float[np.ndarray, "n"]:
    """Mean absolute error of each picture, painted from the latent action `shift` pairs further."""
    latents = np.roll(rows["mean"], shift, axis=0)
    found = _paint(system, loaded, latents)
    return np.abs(found - rows["picture"]).mean((1, 2, 3))


def _paint(
    system: LatentActionSystem, loaded: checkpoint.Loaded, latents: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "n H W 3"]:
    paint = jax.jit(lambda rows: system.paint(loaded.params, loaded.frozen, rows))
    parts = []
    for begin in range(0, len(latents), BATCH):
        part = latents[begin : begin + BATCH]
        filled = np.concatenate([part, np.zeros((BATCH - len(part), latents.shape[1]), np.float32)])
        parts.append(np.asarray(paint(filled))[: len(part)])
    return np.concatenate(parts)


def describe(found: Mapping[str, Any]) -> str:
    """The figures in a few lines."""
    shares = {name: {key: 100 * value for key, value in row.items()} for name, row in found["explained"].items()}
    lines = [
        f"  {name:14} explains {row['value']:5.1f} % ({row['low']:.1f} to {row['high']:.1f}) of real motion"
        for name, row in shares.items()
    ]
    for name, row in found["explained_more_than"].items():
        value, low, high = (100 * row[key] for key in ("value", "low", "high"))
        lines.append(f"  {value:+.1f} points ({low:+.1f} to {high:+.1f}) beside {name}, pair by pair")
    own, other = (found["painted"][name]["value"] for name in ("own", "another's"))
    return "\n".join([*lines, f"  flow pictures from their own latent action {own:.4f}, from another's {other:.4f}"])


def write(
    out: pathlib.Path, found: Mapping[str, Any], system: LatentActionSystem, loaded: checkpoint.Loaded,
    train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """Writes the folder; an earlier one is replaced only by a complete one."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "latents.json").write_text(json.dumps(found, indent=1) + "\n")
    _write_pairs(partial, system, loaded, test)
    _write_traversals(partial, system, loaded, train)
    _write_correlations(partial, test)
    components = alignment.principal(train["mean"], COMPONENTS)(test["mean"])
    _write_components(partial, components, test["actions"])
    sections = [
        _overview(found),
        _gallery("pairs", "Pairs", "pairs.png", PAIRS),
        _gallery("numbers", "What each number moves", "traversals.png", TRAVERSALS),
        _gallery("real", "Latent and real", "real.png", REAL),
        _gallery("components", "Principal components and real actions", "components.png", COMPONENTS_TEXT),
    ]
    head = "<h1>Latent actions</h1><p>Optical flow of two frames, kept in " + f"{found['dim']} numbers.</p>"
    text = page.page("Latent actions", head, "".join(sections))
    (partial / "index.html").write_text(text, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


PAIRS = ("Held-out pairs: first frame, second frame, their flow, the flow painted from its latent action, and from "
         "another pair's. Hue is direction, white no motion.")  # fmt: skip
TRAVERSALS = ("Flow painted from the mean latent action with one number moved by -2 to 2 standard deviations; a row a "
              "number.")  # fmt: skip
REAL = "Correlation of each latent number (rows) with each real action (columns) on held-out pairs: blue -1, red 1."
COMPONENTS = 4
"""Principal components of the latent actions on the page."""
COMPONENTS_TEXT = ("Principal components of the latent actions (across), largest first, against the real action that "
                   "each goes with most (up), on held-out pairs.")  # fmt: skip
PANEL, HEAD, DOT = 240, 24, 2


def _gallery(anchor: str, title: str, picture: str, words: str) -> str:
    return page.section(anchor, title, f'<p>{page.escape(words)}</p><div class="strip"><img src="{picture}"></div>')


def _overview(found: Mapping[str, Any]) -> str:
    bars = [
        charts.Bar(name, row["value"], row["low"], row["high"], name == LATENT)
        for name, row in found["explained"].items()
    ]
    painted = [
        charts.Bar(name, row["value"], row["low"], row["high"], name == "own") for name, row in found["painted"].items()
    ]
    figures = charts.interval_chart("Share of real motion explained by a linear reading", "", "higher", bars)
    more = [charts.Bar(f"beside {name}", row["value"], row["low"], row["high"], True)
            for name, row in found["explained_more_than"].items()]  # fmt: skip
    figures += charts.interval_chart("Share explained beyond other features", "", "higher", more)
    figures += charts.interval_chart("Error of the painted flow picture", "", "lower", painted)
    words = (f"{found['pairs']['test']} held-out pairs of {found['episodes']} episodes; probes fitted on "
             f"{found['pairs']['train']} training pairs.")  # fmt: skip
    verdicts = page.pill(found["aligned"], "explains more than equal numbers without labels",
                         "explains no more than equal numbers without labels")  # fmt: skip
    verdicts += " " + page.pill(found["informed"], "carries the flow", "says nothing of the flow")
    return page.section("figures", "Figures", f'<p>{words}</p>{verdicts}<div class="grid two">{figures}</div>')


def _shown(picture: Float[np.ndarray, "*n H W 3"]) -> np.ndarray:
    return np.round((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8)


def _write_pairs(folder: pathlib.Path, system: LatentActionSystem, loaded: checkpoint.Loaded, test: Mapping) -> None:
    moving = np.argsort(-np.linalg.norm(test["flow"], axis=-1).mean((1, 2)))
    chosen = np.sort(moving[: len(moving) // 2][:: max(1, len(moving) // 2 // SHOWN)][:SHOWN])
    own = _paint(system, loaded, test["mean"][chosen])
    other = _paint(system, loaded, np.roll(test["mean"], 1, axis=0)[chosen])
    rows = [
        np.concatenate([*test["frames"][k], _shown(test["picture"][k]), _shown(own[n]), _shown(other[n])], axis=1)
        for n, k in enumerate(chosen)
    ]
    pictures.write_image(folder / "pairs.png", pictures.enlarge(np.concatenate(rows)[None], 2)[0])


def _write_traversals(
    folder: pathlib.Path, system: LatentActionSystem, loaded: checkpoint.Loaded, train: Mapping[str, np.ndarray]
) -> None:
    mean, std = train["mean"].mean(0), train["mean"].std(0)
    latents = np.stack([mean + step * std * (np.arange(len(mean)) == k) for k in range(len(mean)) for step in STEPS])
    painted = _shown(_paint(system, loaded, latents.astype(np.float32)))
    grid = painted.reshape(len(mean), len(STEPS), *painted.shape[1:])
    pictures.write_image(folder / "traversals.png", np.concatenate([np.concatenate(row, axis=1) for row in grid]))


def _write_components(
    folder: pathlib.Path, components: Float[np.ndarray, "n C"], actions: Float[np.ndarray, "n A"]
) -> None:
    partners = np.abs(_correlations(components, actions)).argmax(1)
    panels = []
    for values, partner in zip(components.T, partners):
        canvas = np.full((PANEL, PANEL, 3), 255, np.uint8)
        cv2.rectangle(canvas, (0, HEAD), (PANEL - 1, PANEL - 1), (200, 200, 200))
        places = []
        for row in (values, -actions[:, partner]):
            low, high = np.percentile(row, [0.5, 99.5])
            places.append(np.clip((row - low) / (high - low + BEYOND), 0, 1) * (PANEL - HEAD - 20) + 10)
        for place in np.round(np.stack(places, 1) + np.array([HEAD / 2, HEAD])).astype(int):
            cv2.circle(canvas, tuple(map(int, place)), DOT, (40, 80, 200), -1, cv2.LINE_AA)
        cv2.putText(canvas, f"real action {partner + 1}", (8, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1,
                    cv2.LINE_AA)  # fmt: skip
        panels.append(canvas)
    pictures.write_image(folder / "components.png", np.concatenate(panels, axis=1))


def _correlations(ours: Float[np.ndarray, "n C"], theirs: Float[np.ndarray, "n A"]) -> Float[np.ndarray, "C A"]:
    both = [(rows - rows.mean(0)) / (rows.std(0) + BEYOND) for rows in (ours, theirs)]
    return both[0].T @ both[1] / len(ours)


def _write_correlations(folder: pathlib.Path, test: Mapping[str, np.ndarray]) -> None:
    found = _correlations(test["mean"], test["actions"])
    share = np.clip(found, -1, 1)[..., None]
    colours = 255 * (1 - np.abs(share)) + np.where(share > 0, [200, 40, 40], [40, 80, 200]) * np.abs(share)
    large = np.round(colours).astype(np.uint8).repeat(40, 0).repeat(56, 1)
    pictures.write_image(folder / "real.png", large)


if __name__ == "__main__":
    cli.run(main)
