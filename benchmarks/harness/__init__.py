"""How contenders are run and timed, each in a process of its own, and what is measured."""
