"""`python -m bench [WORK]`: see run.py."""

from bench.run import main

main()
