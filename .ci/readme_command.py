"""Print the README's command of the given name, so that CI runs what a newcomer reads, word for word."""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
commands = dict(re.findall(r"<!-- command: (\w+) -->\s*```(?:bash|sh)\n(.*?)```", readme, flags=re.DOTALL))
print(commands[sys.argv[1]])
