"""How a question is asked: command line, rounds, sweeps, and the checks before anything is measured."""
