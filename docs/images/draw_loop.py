"""Draws docs/images/loop.svg, the diagram of the README: ``python docs/images/draw_loop.py``."""

from html import escape
from pathlib import Path

WIDTH, HEIGHT, BOX, TALL = 980, 330, 138, 58
ROWS = (40, 210)
BLUE, GREY, RED = "#0b5cab", "#52606d", "#b42318"

# name → (column, row, title, subtitle)
BOXES = {
    "table": (0, 0, "table", "CSV, Parquet, SQL"),
    "validate": (1, 0, "validate", "contract, rules, leaks"),
    "train": (2, 0, "train", "cross-validation, tuning"),
    "evaluate": (3, 0, "evaluate", "holdout, slices, intervals"),
    "gate": (4, 0, "gate", "compare with champion"),
    "serve": (5, 0, "serve", "HTTP, files, Python"),
    "log": (5, 1, "log", "predictions, late labels"),
    "monitor": (4, 1, "monitor", "drift, quality, SLOs"),
    "policy": (3, 1, "policy", "one decision per cause"),
}
STEP = (WIDTH - 2 * 16 - BOX) / 5


def place(name: str) -> tuple[float, float]:
    column, row, _, _ = BOXES[name]
    return 16 + column * STEP, ROWS[row]


def box(name: str) -> str:
    x, y = place(name)
    _, _, title, subtitle = BOXES[name]
    return (
        f'<rect x="{x:.0f}" y="{y}" width="{BOX}" height="{TALL}" rx="6" fill="#fff" stroke="{BLUE}" stroke-width="1.5"/>'
        f'<text x="{x + BOX / 2:.0f}" y="{y + 24}" font-weight="600" fill="#1f2933">{escape(title)}</text>'
        f'<text x="{x + BOX / 2:.0f}" y="{y + 43}" font-size="10.5" fill="{GREY}">{escape(subtitle)}</text>'
    )


def arrow(points: str, label: str = "", at: tuple[float, float] = (0, 0), colour: str = GREY) -> str:
    line = f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="1.5" marker-end="url(#end)"/>'
    text = (
        f'<text x="{at[0]:.0f}" y="{at[1]:.0f}" font-size="11" fill="{colour}">{escape(label)}</text>' if label else ""
    )
    return line + text


def draw() -> str:
    parts = [box(name) for name in BOXES]
    for left, right in zip(
        ("table", "validate", "train", "evaluate", "gate"),
        ("validate", "train", "evaluate", "gate", "serve"),
        strict=True,
    ):
        (x, y), (to, _) = place(left), place(right)
        parts.append(arrow(f"M{x + BOX:.0f} {y + TALL / 2}H{to - 7:.0f}"))
    for right, left in (("log", "monitor"), ("monitor", "policy")):
        (x, y), (to, _) = place(right), place(left)
        parts.append(arrow(f"M{x:.0f} {y + TALL / 2}H{to + BOX + 7:.0f}"))
    x, y = place("serve")
    parts.append(arrow(f"M{x + BOX / 2:.0f} {y + TALL}V{ROWS[1] - 7}"))
    policy, validate, gate, serve = place("policy"), place("validate"), place("gate"), place("serve")
    parts.append(
        arrow(
            f"M{policy[0]:.0f} {policy[1] + TALL / 2}H{validate[0] + BOX / 2:.0f}V{ROWS[0] + TALL + 7}",
            "retrain",
            (validate[0] + BOX / 2 + 70, ROWS[1] + TALL / 2 - 8),
        )
    )
    parts.append(
        arrow(
            f"M{policy[0] + BOX / 2:.0f} {policy[1]}V{policy[1] - 50}H{serve[0] + 30:.0f}V{ROWS[0] + TALL + 7}",
            "roll back",
            ((policy[0] + gate[0] + BOX) / 2, policy[1] - 58),
            RED,
        )
    )
    parts.append(
        f'<text x="{gate[0] + BOX / 2:.0f}" y="{ROWS[0] - 14}" font-size="11" fill="{GREY}">refused: the champion stays</text>'
    )
    marker = (
        '<marker id="end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT - 40}" role="img" '
        'aria-label="table, validate, train, evaluate, gate, serve; log, monitor, policy; back to training or to a rollback" '
        'font-family="system-ui, sans-serif" font-size="14" text-anchor="middle">'
        f'<rect width="{WIDTH}" height="{HEIGHT - 40}" fill="#fff"/><defs>{marker}</defs>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("loop.svg").write_text(draw(), encoding="utf-8")
