"""The container file, read as a builder reads it: no engine is at hand here. What it names exists, and is enough."""

import ast
import fnmatch
import json
import pathlib
import re
import shlex

import pytest
from absl import flags
from setuptools import find_packages

from motus_jax import serve
from motus_jax.robots.server.protocols import PROTOCOLS

REPOSITORY = pathlib.Path(__file__).parents[2]
TEXT = (REPOSITORY / "launch" / "Containerfile").read_text()
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL",
         "ENTRYPOINT"}  # fmt: skip
OUTSIDE = ("runs/demo/config.json", "datasets/aloha_sim/meta/info.json", "key.txt", ".git/config", ".venv/bin/python",
           "tests/conftest.py", "motus_jax/__pycache__/modes.cpython-312.pyc")  # fmt: skip


def instructions():
    """(word, rest) of each instruction, continued lines joined, comments left out."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def rest_of(word):
    return [rest for found, rest in instructions() if found == word]


def copied():
    """Sources of all COPY instructions, relative to the repository."""
    return [source for rest in rest_of("COPY") for source in rest.split()[:-1]]


def ignored(path):
    """Whether the builder leaves out a path: the last pattern that matches it or a folder above it decides."""
    found, parents = False, [path, *(str(parent) for parent in pathlib.PurePosixPath(path).parents)]
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and not pattern.startswith("#"):
            deep = pattern.removeprefix("**/")
            if any(fnmatch.fnmatch(p, pattern) or (deep != pattern and fnmatch.fnmatch(p.rpartition("/")[2], deep))
                   for p in parents):  # fmt: skip
                found = not line.startswith("!")
    return found


@pytest.fixture
def served_flags(monkeypatch):
    values = flags.FlagValues()
    for kind in ("string", "integer", "float", "list"):
        define = getattr(flags, f"DEFINE_{kind}")

        def defined(*args, define=define, **more):
            return define(*args, flag_values=values, **more)

        monkeypatch.setattr(serve.flags, f"DEFINE_{kind}", defined)
    serve.define_flags()
    return values


def test_only_known_instructions_in_a_possible_order():
    words = [word for word, _ in instructions()]
    assert set(words) <= KNOWN and words[0] == "FROM" and words.count("ENTRYPOINT") == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.1[12]-slim", rest_of("FROM")[0])


def test_what_is_copied_exists_and_is_not_left_out():
    for source in copied():
        assert (REPOSITORY / source).exists() and not ignored(source), source
    for path in OUTSIDE:
        assert ignored(path), path
    assert not ignored("motus_jax/models/motus.py") and not ignored("motus_jax_client/client.py")


def test_what_is_copied_is_all_that_installing_and_serving_take():
    (call,) = [node for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text()))
               if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "find_packages"]  # fmt: skip
    include = ast.literal_eval(call.keywords[0].value)
    packages = {name.partition(".")[0] for name in find_packages(str(REPOSITORY), include=include)}
    assert packages == {"motus_jax", "motus_jax_client"} and packages <= set(copied())
    assert {"setup.py", "pyproject.toml"} <= set(copied())
    (install,) = [rest for rest in rest_of("RUN") if "pip install" in rest]
    assert ".[serve]" in shlex.split(install)
    for path in (REPOSITORY / "motus_jax").rglob("*.py"):
        left_out = r"^\s*(from|import) (experiments|tests|benchmarks|launch)\b"
        assert not re.search(left_out, path.read_text(), re.MULTILINE), path


def test_the_command_is_one_that_serve_takes(served_flags):
    program, *arguments = json.loads(rest_of("ENTRYPOINT")[0])
    assert [program, *arguments[:2]] == ["python", "-m", "motus_jax.serve"]
    served_flags(["serve", *arguments[2:]])
    assert served_flags.workdir == "/run/motus" and served_flags.host == "0.0.0.0"
    assert str(served_flags.port) == rest_of("EXPOSE")[0] == "8000"
    examples = re.sub(r" \\\n#\s*", " ", TEXT)
    runs = [shlex.split(line) for line in re.findall(r"^#\s+(podman run .*)$", examples, re.MULTILINE)]
    assert len(runs) == 2
    for words in runs:
        assert any(word.endswith(":/run/motus:ro") for word in words)
        served_flags.unparse_flags()
        served_flags(["serve", *words[words.index("motus_jax") + 1 :]])
    assert served_flags.modes == ["vla", "joint"] and f"key.txt:{served_flags.api_key_file}:ro" in " ".join(runs[1])


def test_the_check_of_its_health_asks_what_every_protocol_answers():
    (check,) = rest_of("HEALTHCHECK")
    command = json.loads(check[check.index("CMD ") + 4 :])
    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    assert "http://127.0.0.1:8000/healthz" in command[2]
    assert all("/healthz" in protocol.pages for protocol in PROTOCOLS.values())
    assert re.search(r"--start-period=\d+m", check)


def test_it_runs_without_rights_and_holds_no_secret():
    words = [word for word, _ in instructions()]
    assert rest_of("USER") == ["motus"] and "useradd" in " ".join(rest_of("RUN"))
    assert words.index("USER") < words.index("ENTRYPOINT")
    installing = [place for place, (word, rest) in enumerate(instructions()) if word == "RUN" and "pip" in rest]
    assert max(installing) < words.index("USER"), "what it runs cannot be written by the user who runs it"
    for word in ("ENV", "ARG", "COPY"):
        assert not re.search(r"key|token|secret|password", " ".join(rest_of(word)), re.IGNORECASE)
