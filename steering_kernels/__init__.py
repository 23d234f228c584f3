"""Tensor code for steering: moving hidden states by vectors, and the conditions under which that is done.

Torch and Triton only; no vLLM and no patch files here. Axis names: L layers of one rank, R rows of a table, d
hidden size, T tokens of a step.
"""

from steering_kernels.conditions import (
    MAX_PROBES,
    MET,
    NOT_MET,
    UNDECIDED,
    ConditionTable,
    Probe,
    ScoreLedger,
)
from steering_kernels.dispatch import (
    Choice,
    Implementation,
    choose_implementation,
    decide_,
    read_flags_,
    score_tokens_,
    steer_layer_,
    steer_output_,
    steer_residual_,
)
from steering_kernels.layout import Form, Site, SteeringTable
from steering_kernels.step import StepRequests, TokenRows

__all__ = [
    "MAX_PROBES",
    "MET",
    "NOT_MET",
    "UNDECIDED",
    "Choice",
    "ConditionTable",
    "Form",
    "Implementation",
    "Probe",
    "ScoreLedger",
    "Site",
    "SteeringTable",
    "StepRequests",
    "TokenRows",
    "choose_implementation",
    "decide_",
    "read_flags_",
    "score_tokens_",
    "steer_layer_",
    "steer_output_",
    "steer_residual_",
]
