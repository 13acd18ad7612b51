"""Many raters at once: the same work through karat, Potato and Label Studio, each in an environment of its own.

`plan` and `figures` are arithmetic; `driver` is the crowd and runs in an environment of its own too; each system's
module says how it is started and what its page asks of the server. load_study.py puts them together.
"""
