"""Every error karat raises on purpose.

    KaratError
    ├── ConfigError        a configuration or option that cannot be used
    ├── InputError         a file, row or text from outside that cannot be used
    │   ├── LeakageError   the same prompt on both sides of a split
    │   └── CheckpointError  a model directory that cannot be used
    ├── StoreError         the feedback store refuses an operation
    │   ├── LeaseError     a lease that is unknown, expired or not the caller's
    │   └── AnsweredError  another answer of hers is there, and this one was not said to replace it
    ├── LedgerError        an artefact or manifest that is missing, altered or half-written
    ├── MaskError          a mask that counts nothing, or counts after a gap
    ├── GateError          the reward model did not pass its acceptance gate
    ├── ProcessError       another of the processes that work together is gone
    ├── InvariantError     a runtime check failed: the run would not be what it claims
    └── ConvergenceError   an estimator that did not converge; no number is returned instead
        └── PosteriorError   a posterior that is not positive definite

A message says what was found, what was expected, and what to do. The command line prints it as one line
and exits with 2; anything else that escapes is a bug in karat.
"""


class KaratError(Exception):
    """Root of the tree; the command line turns it into one line and exit code 2."""


class ConfigError(KaratError):
    """A configuration key or option value that cannot be used."""


class InputError(KaratError):
    """A file, row or text from outside that cannot be used."""


class LeakageError(InputError):
    """The same prompt occurs on both sides of a split."""


class CheckpointError(InputError):
    """A model directory that cannot be used."""


class StoreError(KaratError):
    """The feedback store refuses an operation."""


class LeaseError(StoreError):
    """A lease that is unknown, expired or held by somebody else."""


class AnsweredError(StoreError):
    """A rater's other answer to the same task is there, and nobody said that this one takes its place."""


class LedgerError(KaratError):
    """An artefact or manifest that is missing, altered or half-written."""


class MaskError(KaratError):
    """A mask that counts nothing, or counts after a gap."""


class GateError(KaratError):
    """The reward model did not pass its acceptance gate, or has not the groups of people that a policy is to serve."""


class ProcessError(KaratError):
    """Another of the processes that work together is gone, or failed; without a message, that one has said why."""


class InvariantError(KaratError):
    """A runtime check failed: what runs is not what the recipe claims."""


class ConvergenceError(KaratError):
    """An estimator did not converge; no number is returned instead."""


class PosteriorError(ConvergenceError):
    """A posterior that is not positive definite: it is no distribution, and nothing can be drawn from it."""
