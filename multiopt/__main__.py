"""``python -m multiopt``: the command line."""

from .cli import main

raise SystemExit(main())
