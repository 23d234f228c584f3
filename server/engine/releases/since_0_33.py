"""Where vLLM has what earlier releases had elsewhere, since 0.33."""

from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.common.startup import cli_env_setup

__all__ = ["cli_env_setup", "make_arg_parser", "validate_parsed_serve_args"]
