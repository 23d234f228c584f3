"""Mistakes at the start: one line that says what to do."""

import gc
import logging
import socket
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, field_validator

from patches.errors import ModelUnusable
from server.engine.address import AddressUnusable, bind_server
from server.engine.launch import engine_parser
from server.engine.start_errors import START_ERRORS, EngineFailed, engine_started, flags_judged
from server.engine.support import UnsupportedSetup

# vLLM leaves a socket that it could not bind to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("reuse_port", [False, True], ids=["alone", "several-front-ends"])
def test_a_port_in_use_is_named_with_what_to_do(taken_port: int, reuse_port: bool) -> None:
    args = engine_parser().parse_args(["model", "--host", "127.0.0.1", "--port", str(taken_port)])
    with pytest.raises(
        AddressUnusable, match=f"^--port: {taken_port} is in use on 127.0.0.1; .* choose another$"
    ):
        bind_server(args, reuse_port=reuse_port)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "192.0.2.1"], "--host: 192.0.2.1 is no address of this machine"),
        (["--host", "no-such-host.invalid"], "--host: no-such-host.invalid is no address of this machine"),
        (["--port", "99999"], "--port: expected 0 to 65535, got 99999"),
        (["--ssl-certfile", "/nonexistent"], "--ssl-certfile, --ssl-keyfile: /nonexistent: No such file"),
        (
            ["--ssl-certfile", __file__],
            "--ssl-certfile, --ssl-keyfile: .*; expected a certificate and its key",
        ),
        (["--uds", "/nonexistent/socket"], "--uds: /nonexistent/socket: No such file or directory"),
    ],
)
def test_an_address_that_is_none_of_this_machine_is_named_by_its_flag(flags: list[str], message: str) -> None:
    with pytest.raises(AddressUnusable, match=f"^{message}"):
        bind_server(engine_parser().parse_args(["model", *flags]), reuse_port=False)


class Checked(BaseModel):
    """Refuses as vLLM's configuration does."""

    value: int

    @field_validator("value")
    @classmethod
    def refuse(cls, value: int) -> int:
        raise ValueError(f"fp{value} is not supported\n  on this device")


def test_what_vllm_says_about_flags_is_one_line() -> None:
    with pytest.raises(UnsupportedSetup) as caught, flags_judged():
        Checked(value=8)
    assert str(caught.value).endswith("with these flags: fp8 is not supported on this device")


def test_a_parser_that_vllm_does_not_have_is_told_without_quotes_around_it() -> None:
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "nope", "--host", "127.0.0.1"]
    args = engine_parser().parse_args(["model", *flags])
    with pytest.raises(UnsupportedSetup, match="these flags: invalid tool call parser: nope"), flags_judged():
        bind_server(args, reuse_port=False)


def test_a_value_out_of_range_is_told_with_its_name() -> None:
    message = "these flags: value: Input should be a valid integer"
    with pytest.raises(UnsupportedSetup, match=message), flags_judged():
        Checked.model_validate({"value": "x"})


@pytest.mark.parametrize(
    "flags", [["--no-such-flag"], ["--device", "cuda"], ["--dtype", "int8"], ["--port", "x"]]
)
def test_a_flag_that_vllm_does_not_take_ends_in_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        engine_parser().parse_args(["model", *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("policypatch serve: ")
    assert flags[0] in line
    assert line.endswith("; see `policypatch serve --help` and `--engine-help`")


@pytest.mark.parametrize(
    "kind",
    [
        OSError,
        RuntimeError,
        AssertionError,
        NotImplementedError,
        ImportError,
        TypeError,
        KeyError,
        AttributeError,
    ],
)
def test_every_kind_of_refusal_ends_the_start_with_one_line(kind: type[Exception]) -> None:
    with pytest.raises(START_ERRORS, match="no GPU here"), flags_judged():
        raise kind("no GPU here")


def test_our_own_refusals_stay_as_they_are() -> None:
    with pytest.raises(ModelUnusable, match=r"^model: gone$"), flags_judged():
        raise ModelUnusable("model: gone")


def test_the_trace_of_a_refusal_is_there_for_those_who_debug(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="server"),
        pytest.raises(UnsupportedSetup),
        flags_judged(),
    ):
        raise OSError("gone")
    assert caplog.records[0].exc_info is not None


def test_an_engine_that_failed_is_told_once_and_other_errors_pass() -> None:
    with pytest.raises(EngineFailed), engine_started():
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    with pytest.raises(RuntimeError, match="another"), engine_started():
        raise RuntimeError("another")
