"""results.html of a demo: one file with everything measured and the pictures inside, to be sent to another person."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>simjax: $dataset</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 58rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.of, figcaption { color: #666; }
.of { margin-top: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, .settings td { text-align: left; }
th { border-bottom: 2px solid #999; }
.marked { font-weight: bold; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>A sparse implicit model of a network on $dataset</h1>
<p class="of">$samples</p>
<p>The network computes layer by layer. The implicit model <i>x = φ(Ax + Bu), ŷ = Cx + Du</i> finds the same states as a
fixed point, with fewer weights, those of A used anew in every pass towards it. Each row of (A B) and (C D) solves a
convex problem, and a certificate proves how far from its optimum it can be.</p>
$comparison
$pictures
<h2>Models by weight of the penalty</h2>
$path
<p>$rule</p>
<h2>Settings of the fit</h2>
$fit
<h2>Where it ran</h2>
$environment
<h2>Seconds</h2>
$seconds
</body>
</html>
""")

# What each picture shows, in the order of the page.
_CAPTIONS = {
    "trade_off": "Test accuracy against sparsity: each point is a model of its own, with its alpha beside it.",
    "pattern": "Nonzero weights of the implicit model, and of the network that it imitates, each a dot.",
    "gaps": "How far each row can be from its optimum at most: the relative duality gap, proved in float64.",
}
_RULES = {
    "default": "The line in bold is the model above, of the default alpha for this data set, chosen once "
    "on training samples held out from a network. By these test samples, which are not for choosing, another may win.",
    "as asked": "The line in bold is the model above, of the alpha that was asked for.",
}


def results_page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page, from what is in results.json and the pictures (PNG) by name."""
    fit = results["fit"]
    return _PAGE.substitute(
        dataset=html.escape(results["dataset"]),
        samples=html.escape(
            f"{results['samples']:,} training samples, seed {results['seed']}"
            f"{', a short run' if results['quick'] else ''}; simjax {results['environment']['simjax']}"
        ),
        comparison=_comparison(results),
        pictures="\n".join(_figure(pictures[name], caption) for name, caption in _CAPTIONS.items()),
        path=_path(results),
        rule=html.escape(_RULES[fit["alpha_rule"]]),
        fit=_settings(fit),
        environment=_settings(results["environment"]),
        seconds=_settings(results["seconds"]),
    )


def _comparison(results: Mapping[str, Any]) -> str:
    baseline, model, rows = results["baseline"], results["model"], results["rows"]
    gap = rows["worst_relative_gap"]
    return _table(
        ("", "network", "implicit model"),
        [
            ("test accuracy", _percent(baseline["test_accuracy"]), _percent(model["test_accuracy"])),
            ("nonzero weights", f"{baseline['nonzeros']:,}", f"{model['nonzeros']:,}"),
            ("fewer than the network", "", _percent(model["sparsity"])),
            ("passes through A", "", str(model["passes"])),
            ("‖A‖∞", "", f"{model['well_posedness']:.6g}"),
            ("rows certified", "", f"{rows['certified']} of {rows['total']}"),
            ("worst relative gap", "", "not finite" if gap is None else f"{gap:.1e}"),
        ],
    )


def _path(results: Mapping[str, Any]) -> str:
    total, points = results["rows"]["total"], results["path"]
    rows = [
        (
            f"{point['alpha']:.4g}",
            _percent(point["sparsity"]),
            _percent(point["accuracy"]),
            f"{point['rows_certified']} of {total}",
        )
        for point in points
    ]
    marked = {k for k, point in enumerate(points) if point["alpha"] == results["fit"]["alpha"]}
    return _table(("alpha", "sparsity", "test accuracy", "rows certified"), rows, marked)


def _figure(picture: bytes, caption: str) -> str:
    source, words = base64.b64encode(picture).decode("ascii"), html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body.append(f'<tr class="marked">{cells}</tr>' if number in marked else f"<tr>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
        if value is not None
    )
    return f'<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div>'


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
