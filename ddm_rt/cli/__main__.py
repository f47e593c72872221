"""`python -m ddm_rt.cli`: the command line without the installed script."""

from ddm_rt.cli import main

main()
