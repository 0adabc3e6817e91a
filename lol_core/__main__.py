from lol_core.cli import app

app(prog_name="python -m lol_core")
