"""towline doctor: checks of the setup."""

import click

from towline.cli import emit, json_option

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command(short_help="Checks the installation, the project and the store.")
@json_option
def doctor(as_json: bool) -> None:
    """Checks the installation, the project, the store, servers, ports, disk and clock.

    Each line that is not ok names the remedy. The exit code is 2 if there is an error, else 0.

    \b
    Examples:
      towline doctor
      towline doctor --json
    """
    from towline.config import Settings
    from towline.errors import ConfigError
    from towline.project.doctor import check_setup

    checks = check_setup(Settings.from_environment())
    lines = []
    for check in checks:
        mark, color = MARKS[check.state]
        lines.append(f"{click.style(mark, fg=color)} {check.name:<16} {check.detail}")
        if check.remedy:
            lines.append(f"  {'':<16} → {check.remedy}")
    emit([check.model_dump() for check in checks], as_json, lambda: "\n".join(lines))
    if any(check.state == "error" for check in checks):
        click.get_current_context().exit(ConfigError.exit_code)
