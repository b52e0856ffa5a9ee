"""What XLA is told, and that its own flags go before."""

from motus_jax import compiler

LEVEL = "xla_backend_optimization_level"


def test_flags_of_xla_go_before(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    ours = compiler.options("cpu")
    assert ours[LEVEL] == 2
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{LEVEL}=0")
    assert compiler.options("cpu") == {name: value for name, value in ours.items() if name != LEVEL}
    assert compiler.options("another") is None
