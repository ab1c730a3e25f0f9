"""``python -m towline.cli`` is ``towline``."""

from towline.cli import main

main(prog_name="towline")
