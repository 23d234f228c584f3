"""Tokens of requests whose vector is missing are taken out of what a worker hands over."""

from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from server.engine.withheld import without_tokens_of


def output() -> ModelRunnerOutput:
    return ModelRunnerOutput(["a", "b", "c"], {"a": 0, "b": 1, "c": 2}, [[1], [2, 3], [4]])


class Later(AsyncModelRunnerOutput):
    def get_output(self) -> ModelRunnerOutput:
        return output()


def test_only_the_tokens_of_the_named_requests_go() -> None:
    left = without_tokens_of({"b", "ended"}, output())
    assert isinstance(left, ModelRunnerOutput)
    assert left.sampled_token_ids == [[1], [], [4]]


def test_an_output_that_is_read_later_loses_them_too() -> None:
    failed = {"a"}
    left = without_tokens_of(failed, Later())
    # The set is the worker's own, and goes on.
    failed.clear()
    assert isinstance(left, AsyncModelRunnerOutput)
    assert left.get_output().sampled_token_ids == [[], [2, 3], [4]]


def test_a_step_without_samples_stays_as_it_is() -> None:
    bare = ModelRunnerOutput(["a"], {"a": 0})
    assert without_tokens_of({"a"}, bare) is bare
    assert bare.sampled_token_ids == []
