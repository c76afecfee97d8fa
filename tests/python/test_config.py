"""Config and Launch: every variable is read, and one that is wrong is named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pccl.config import _VARIABLES, Config, Launch, variables_set

READ = {
    "PCCL_ALGORITHM": ("Ring", "algorithm", "ring"),
    "PCCL_BIND": ("10.0.0.7", "bind", "10.0.0.7"),
    "PCCL_CODEC": ("int8", "codec", "int8"),
    "PCCL_CONGESTION_CONTROL": ("BBR", "congestion_control", "bbr"),
    "PCCL_CONNECT_TIMEOUT": ("2.5", "connect_timeout_seconds", 2.5),
    "PCCL_DETERMINISTIC": ("1", "deterministic", True),
    "PCCL_PROBES": ("1", "probes", True),
    "PCCL_GRAPH": ("Regular", "graph", "regular:4:0"),
    "PCCL_HOST": ("a.example, 10.0.0.7,", "hosts", ("a.example", "10.0.0.7")),
    "PCCL_KEY": ("/keys/member.key", "key", "/keys/member.key"),
    "PCCL_LOG": ("DEBUG", "log", "debug"),
    "PCCL_OUTWARD": ("1", "outward", True),
    "PCCL_PORT": ("29600-29602", "ports", (29600, 29601, 29602)),
    "PCCL_RUN": ("pccl://10.0.0.7/my-run", "run", "pccl://10.0.0.7:29400/my-run"),
    "PCCL_SHARED_MEMORY": ("0", "shared_memory", False),
    "PCCL_SIMD": ("v3", "simd", "v3"),
    "PCCL_SOCKETS": ("4", "sockets", 4),
    "PCCL_TRACE_DIR": ("/", "trace_dir", "/"),
    "PCCL_TLS": ("Always", "tls", "always"),
    "PCCL_TIMEOUT": ("60", "timeout_seconds", 60.0),
    "PCCL_WORLD_SIZE_MIN": ("3", "world_size_min", 3),
}


def test_every_variable_is_tested_and_documented() -> None:
    ours = {name for name, (field, _) in _VARIABLES.items() if field}
    assert ours == set(READ)
    text = Path(__file__).resolve().parents[2].joinpath("pccl/config.py").read_text()
    for name in ours:
        assert f'"""{name}:' in text


@pytest.mark.parametrize("name", READ)
def test_a_variable_sets_its_field_and_no_other(name: str) -> None:
    text, field, expected = READ[name]
    config = Config.from_environment({name: f" {text} "})
    assert getattr(config, field) == expected
    changed = {f for f in Config.__dataclass_fields__ if getattr(config, f) != getattr(Config(), f)}
    assert changed == {field}


def test_no_message_holds_the_token_of_an_address() -> None:
    text = "pccl://10.0.0.7/my-run#" + "A" * 42 + "Q.SECRET"
    with pytest.raises(ValueError, match="PCCL_RUN") as caught:
        Config.from_environment({"PCCL_RUN": text})
    assert "SECRET" not in str(caught.value)
    whole = text.replace("SECRET", "AAAAAAAAAAAAAAAAAAAABw")
    config = Config.from_environment({"PCCL_RUN": whole})
    assert "AABw" not in repr(config)
    assert variables_set({"PCCL_RUN": whole}) == (["PCCL_RUN=pccl://10.0.0.7/my-run#..."], [])


def test_unset_and_empty_variables_leave_the_defaults() -> None:
    assert Config.from_environment({}) == Config()
    assert Config.from_environment(dict.fromkeys(READ, " ")) == Config()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PCCL_ALGORITHM", "the best!"),
        ("PCCL_CONNECT_TIMEOUT", "soon"),
        ("PCCL_CONNECT_TIMEOUT", "0"),
        ("PCCL_CONNECT_TIMEOUT", "inf"),
        ("PCCL_GRAPH", "rong"),
        ("PCCL_LOG", "loud"),
        ("PCCL_TRACE_DIR", "/no/such/folder"),
        ("PCCL_PORT", "http"),
        ("PCCL_PORT", "70000"),
        ("PCCL_PORT", "10-5"),
        ("PCCL_PORT", "1-60000"),
        ("PCCL_RUN", "my-run"),
        ("PCCL_SHARED_MEMORY", "maybe"),
        ("PCCL_SIMD", "mmx"),
        ("PCCL_SOCKETS", "two"),
        ("PCCL_SOCKETS", "65"),
        ("PCCL_CONGESTION_CONTROL", "two words"),
        ("PCCL_TIMEOUT", "-1"),
        ("PCCL_TIMEOUT", "nan"),
        ("PCCL_WORLD_SIZE_MIN", "0"),
    ],
)
def test_a_variable_that_cannot_be_understood_is_named_and_quoted(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Config.from_environment({name: text})
    assert str(caught.value).startswith(f"{name}={text!r}: ")


def test_a_name_that_is_none_of_ours_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("pccl").setLevel(logging.WARNING)
    Config.from_environment({"PCCL_SOCKET": "4", "PATH": "/bin"})
    assert [record.getMessage() for record in caplog.records] == [
        "PCCL_SOCKET: not a variable of pccl; it has no effect"
    ]


LAUNCH = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


def test_a_launch_is_read_from_the_variables_of_launchers() -> None:
    launch = Launch.from_environment(LAUNCH)
    assert (launch.rank, launch.world_size, launch.host, launch.port) == (1, 4, "host", 29500)
    assert not launch.port_is_taken
    assert launch.run == ""


def test_torchrun_is_told_by_its_own_variables() -> None:
    torchrun = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    launch = Launch.from_environment({**LAUNCH, **torchrun})
    assert launch.port_is_taken
    assert launch.run == "job/2"


def test_arguments_go_before_variables() -> None:
    launch = Launch.from_environment(LAUNCH, rank=3, world_size=9)
    assert (launch.rank, launch.world_size) == (3, 9)


@pytest.mark.parametrize("name", LAUNCH)
def test_a_launch_variable_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"environment variable {name}"):
        Launch.from_environment({**LAUNCH, name: ""})


@pytest.mark.parametrize(
    ("name", "text"), [("RANK", "first"), ("WORLD_SIZE", "all"), ("MASTER_PORT", "0")]
)
def test_a_launch_variable_that_cannot_be_understood_is_named(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{text}'"):
        Launch.from_environment({**LAUNCH, name: text})


def test_a_congestion_control_that_the_kernel_does_not_have_is_said_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert Config(congestion_control="reno").endpoint_options()["congestion_control"] == "reno"
    assert not caplog.records
    chosen = Config(congestion_control="no_such").endpoint_options()["congestion_control"]
    assert chosen == "kernel"
    assert "this kernel has no 'no_such'" in caplog.text
    with pytest.raises(ValueError, match="congestion_control: expected"):
        Config(congestion_control="a name")
