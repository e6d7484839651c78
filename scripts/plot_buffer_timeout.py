#!/usr/bin/env python3
"""Draws docs/buffer_timeout.svg from what `cargo bench --bench buffer_timeout` printed.

usage: plot_buffer_timeout.py RUNS.jsonl > docs/buffer_timeout.svg

Three panels over the buffer timeout: millions of events a second at saturation, and the median and 99th percentile of the
latency at 200,000 and at 5,000 events a second. Lines are medians over the runs of an engine; latency has a log scale.
"""
import json
import math
import statistics
import sys

ORDER = [0, 1, 5, 10, 50, 100, -1]
COLORS = {"thalweg": "#0b6e99", "flink": "#c0562b"}
WIDTH, HEIGHT, LEFT, TOP = 300, 220, 56, 34


def read(path):
    seen = {}
    for line in open(path):
        if not line.startswith("{"):
            continue
        run = json.loads(line)
        params = run.get("params", {})
        timeout = run.get("timeout_ms", params.get("buffer_timeout_ms"))
        rate = run.get("rate", params.get("rate"))
        if run.get("engine") is None or timeout is None:
            continue
        key = (run["engine"], int(rate), int(timeout))
        values = {name: run.get(name, params.get(name)) for name in ("events_per_s", "p50_ms", "p99_ms")}
        seen.setdefault(key, []).append(values)
    return {
        key: {name: statistics.median(v[name] for v in runs if v[name] is not None) for name in runs[0] if runs[0][name] is not None}
        for key, runs in seen.items()
    }


def panel(x0, title, series, low, high, log):
    """series: (label, color, dashed, {timeout: value})"""
    out = [f'<g transform="translate({x0},{TOP})">']
    out.append(f'<text x="{WIDTH / 2}" y="-12" text-anchor="middle" class="title">{title}</text>')
    out.append(f'<rect width="{WIDTH}" height="{HEIGHT}" class="frame"/>')

    def place(value):
        if log:
            part = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            part = (value - low) / (high - low)
        return HEIGHT * (1 - part)

    if log:
        ticks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        ticks = [low + (high - low) * step / 5 for step in range(6)]
    for tick in ticks:
        y = place(tick)
        out.append(f'<line x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    step = WIDTH / len(ORDER)
    for index, timeout in enumerate(ORDER):
        x = step * (index + 0.5)
        out.append(f'<text x="{x:.1f}" y="{HEIGHT + 16}" text-anchor="middle">{timeout}</text>')
    for label, color, dashed, values in series:
        points = [
            (step * (index + 0.5), place(values[timeout])) for index, timeout in enumerate(ORDER) if timeout in values
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = ' stroke-dasharray="5 4"' if dashed else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{style}/>')
        for x, y in points:
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{label}</title></circle>')
    out.append("</g>")
    return out


def main():
    runs = read(sys.argv[1])
    engines = sorted({engine for engine, _, _ in runs}, reverse=True)

    def of(engine, rate, name, scale=1.0):
        return {
            timeout: values[name] * scale
            for (known, of_rate, timeout), values in runs.items()
            if known == engine and of_rate == rate and name in values
        }

    total = 3 * (WIDTH + LEFT + 20) + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + TOP + 74}" font-family="sans-serif" font-size="11">',
        "<style>.title{font-size:13px;font-weight:bold}.frame{fill:none;stroke:#888}.grid{stroke:#ddd}</style>",
        f'<rect width="{total}" height="{HEIGHT + TOP + 74}" fill="white"/>',
    ]
    saturation = [(e, COLORS.get(e, "#555"), False, of(e, 0, "events_per_s", 1e-6)) for e in engines]
    most = max((value for _, _, _, values in saturation for value in values.values()), default=1)
    top = 10 ** math.ceil(math.log10(most))
    out += panel(LEFT, "saturation, M events/s", saturation, 0.1, max(top, 1), True)
    for index, rate in enumerate((200_000, 5_000), start=1):
        series = []
        for engine in engines:
            for name, dashed in (("p50_ms", True), ("p99_ms", False)):
                series.append((f"{engine} {name}", COLORS.get(engine, "#555"), dashed, of(engine, rate, name)))
        out += panel(LEFT + index * (WIDTH + LEFT + 20), f"latency at {rate:,}/s, ms", series, 0.01, 1000, True)
    y = TOP + HEIGHT + 40
    out.append(f'<text x="{LEFT}" y="{y}">buffer timeout, ms (-1: until a batch is full)</text>')
    x = LEFT + 330
    for engine in engines:
        color = COLORS.get(engine, "#555")
        out.append(f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2"/>')
        out.append(f'<text x="{x + 32}" y="{y}">{engine} (latency: p99)</text>')
        out.append(f'<line x1="{x}" x2="{x + 26}" y1="{y + 14}" y2="{y + 14}" stroke="{color}" stroke-width="2" stroke-dasharray="5 4"/>')
        out.append(f'<text x="{x + 32}" y="{y + 18}">{engine} p50</text>')
        x += 200
    out.append("</svg>")
    print("\n".join(out))


main()
