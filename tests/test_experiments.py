"""Every experiment loads, is exactly what its golden text says, and refuses keys that it does not have.

After a wanted change of an experiment write the golden texts anew and look at the difference:

  python -m tests.test_experiments && git diff tests/golden/configs
"""

import importlib.util
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from motus_jax import modes

REPOSITORY = pathlib.Path(__file__).parents[1]
sys.path.append(str(REPOSITORY))  # experiments import each other by the name of their folder
GOLDEN = REPOSITORY / "tests" / "golden" / "configs"
FILES = sorted(path for path in (REPOSITORY / "experiments").glob("*.py") if path.stem != "__init__")
SIZES = {
    "latent_action": ("lift", "full"),
    "realtime": ("lift",),
    **{f"phase{number}": ("demo", "lift") for number in (1, 2, 3)},
}
"""Experiments with sizes after a colon, the default one left out."""
REGENERATE = "if the change is wanted: python -m tests.test_experiments, then commit tests/golden/configs"


def load(file, size=""):
    """What `get_config()` of a file gives, or what it gives of a size."""
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert str(file.relative_to(REPOSITORY)) in module.__doc__, "the docstring gives the command"
    return module.get_config(*filter(None, [size]))


def sizes(file):
    """"", the default, and the other sizes that a file knows."""
    found = SIZES.get(file.stem, ())
    return ["", *found]


def lines(values, prefix=""):
    """`a.b = value`, one line a key, sorted."""
    for key, value in sorted(values.items()):
        if isinstance(value, dict) and value:
            yield from lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {value!r}"


def text(file, size=""):
    return "\n".join(lines(load(file, size).to_dict())) + "\n"


def golden_of(file, size):
    return GOLDEN / f"{file.stem}{size and '.' + size}.txt"


CASES = [(file, size) for file in FILES for size in sizes(file)]


@pytest.mark.parametrize(("file", "size"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_config_is_its_golden_text(file, size):
    golden = golden_of(file, size)
    assert golden.exists(), f"{golden.name} is missing; {REGENERATE}"
    assert text(file, size) == golden.read_text(), f"{file.name} no longer gives {golden.name}; {REGENERATE}"


def test_no_golden_text_without_an_experiment():
    assert set(GOLDEN.glob("*.txt")) == {golden_of(*case) for case in CASES}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=r"expected one of .* after the colon, found 'huge'"):
        load(REPOSITORY / "experiments" / f"{name}.py", "huge")


def test_every_mode_has_an_experiment_that_selects_it():
    chosen = {file.stem: modes.mixture(load(file).mode) for file in FILES if file.stem in modes.TRAINABLE}
    assert chosen == {name: {name: 1.0} for name in modes.TRAINABLE}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_flags_change_known_keys_and_refuse_others(file, monkeypatch):
    def parse(*changes):
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
        monkeypatch.setattr(sys, "argv", ["train", f"--config={file}", *changes])  # ml_collections looks there
        values(sys.argv)
        return holder.value

    changed = parse("--config.optimizer.schedule.peak=0.5", "--config.mode=vla:2,world_model:1")
    assert changed.optimizer.schedule.peak == 0.5
    assert modes.mixture(changed.mode) == {"vla": pytest.approx(2 / 3), "world_model": pytest.approx(1 / 3)}
    with pytest.raises(AttributeError, match="not_a_key"):
        parse("--config.optimizer.not_a_key=1")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        golden_of(*case).write_text(text(*case))
