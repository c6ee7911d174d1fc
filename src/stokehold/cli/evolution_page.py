"""The evolution of a model as one HTML page that holds all it needs."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stokehold.cli.evolution import COLUMNS, Evolution, Lesson, row, told

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .75rem .25rem 0 }
td { border-top: 1px solid #ddd }
"""


def page(found: Evolution, name: str, suite: str | None) -> bytes:
    """The curves, what each file taught, and the trends; nothing is fetched from anywhere."""
    title = html.escape(f"{name}: evolution" + (f" on {suite}" if suite else ""))
    trends = "".join(
        f"<p><b>{label}</b>: {html.escape(told(one, found.shared))}</p>"
        for label, one in (("exact", found.exact), ("nats per token", found.nll))
    )
    drawn = _curves(found).to_html(full_html=False, include_plotlyjs=True)
    lessons = _lessons(found.lessons).to_html(full_html=False, include_plotlyjs=False) if found.lessons else ""
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = f"<h1>{title}</h1>{drawn}{trends}<h2>What each file taught</h2>{lessons}{_table(found.lessons)}"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n".encode()


def _curves(found: Evolution) -> go.Figure:
    """Exact share and nats per token over steps; versions are named where they were made."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    steps = [point.step for point in found.points]
    named = [f"{point.version or point.ref}, {point.n} items" for point in found.points]
    exact = [None if point.exact is None else 100 * point.exact for point in found.points]
    nll = [point.nll for point in found.points]
    shape = {"x": steps, "text": named, "mode": "lines+markers"}
    figure.add_trace(go.Scatter(y=exact, name="exact, %", **shape), secondary_y=False)
    figure.add_trace(go.Scatter(y=nll, name="nats per token", **shape), secondary_y=True)
    for point in found.points:
        if point.version:
            figure.add_vline(x=point.step, line_dash="dot", line_color="#bbb", annotation_text=point.version)
    return figure.update_layout(xaxis_title="step", yaxis_title="exact, %", height=420, margin={"t": 30})


def _lessons(lessons: Sequence[Lesson]) -> go.Figure:
    """Change of exact match by file, with its 95 % interval."""
    there = [one for one in lessons if one.comparison and one.comparison.delta_exact is not None]
    values, up, down = [], [], []
    for lesson in there:
        assert lesson.comparison is not None
        delta, ends = lesson.comparison.delta_exact or 0.0, lesson.comparison.delta_exact_ci
        low, high = ends or (delta, delta)
        values.append(100 * delta)
        up.append(100 * (high - delta))
        down.append(100 * (delta - low))
    bars = go.Bar(
        x=[lesson.file.file for lesson in there],
        y=values,
        error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down},
    )
    return go.Figure(bars).update_layout(yaxis_title="Δ exact, points", height=320, margin={"t": 10})


def _table(lessons: Sequence[Lesson]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    rows = (
        "".join(f"<td>{'-' if cell is None else html.escape(str(cell))}</td>" for cell in row(lesson))
        for lesson in lessons
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in rows)}</table>"
