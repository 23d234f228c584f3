"""What differs between the releases of vLLM that are served: one module a release, and one of them imported.

``python -m tools.vllm_surface WHEEL`` says what another release needs here.

==============  ======================================================
``until_0_32``  0.32
``since_0_33``  0.33, rehearsed with its CUDA build on a stand-in driver
==============  ======================================================
"""

from vllm import __version_tuple__

if __version_tuple__[:2] >= (0, 33):
    from server.engine.releases.since_0_33 import cli_env_setup, make_arg_parser, validate_parsed_serve_args
else:
    from server.engine.releases.until_0_32 import cli_env_setup, make_arg_parser, validate_parsed_serve_args

__all__ = ["cli_env_setup", "make_arg_parser", "validate_parsed_serve_args"]
