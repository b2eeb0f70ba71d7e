"""A plot of lines, as SVG that is readable on a light page and on a dark one."""

import math
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 130, 20, 50
# Told apart by eyes that tell few colours apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#888888"


def line_plot(lines: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Each line with its name at its end. The horizontal axis doubles from mark to mark, the vertical one begins at nothing."""
    lines = {name: points for name, points in lines.items() if points}
    xs = sorted({x for points in lines.values() for x, _ in points})
    step = round_step(max(y for points in lines.values() for _, y in points) / 5)
    top = step * math.ceil(max(y for points in lines.values() for _, y in points) / step)
    span = math.log2(xs[-1] / xs[0]) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * math.log2(x / xs[0]) / span
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top

    parts = []
    for number in range(round(top / step) + 1):
        _, down = place(xs[0], number * step)
        parts.append(f'<path d="M{LEFT} {down:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity="0.3"/>')
        parts.append(text(LEFT - 8, down + 4, f"{number * step:g}", "end"))
    for x in xs:
        parts.append(text(place(x, 0)[0], HEIGHT - BOTTOM + 18, f"{x:g}", "middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle:.1f})">{text(16, middle, y_label, "middle")}</g>')
    for (name, points), colour in zip(lines.items(), COLOURS * len(lines)):
        placed = [place(x, y) for x, y in sorted(points)]
        way = " ".join(f"{across:.1f},{down:.1f}" for across, down in placed)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in placed]
        parts.append(text(placed[-1][0] + 8, placed[-1][1] + 4, name, "start", colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join((head, *parts, "</svg>\n"))


def round_step(least: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def text(x: float, y: float, words: str, anchor: str, colour: str = GREY) -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
