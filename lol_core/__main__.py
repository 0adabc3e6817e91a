from lol_core.cli.commands import app

app(prog_name="python -m lol_core")
