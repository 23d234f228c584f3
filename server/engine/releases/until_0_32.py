"""Where vLLM 0.32 has what later releases have elsewhere."""

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

__all__ = ["cli_env_setup", "make_arg_parser", "validate_parsed_serve_args"]
