"""The report as Markdown: tables with their conditions, the best value of every column in bold."""

from __future__ import annotations

from sr_dist.evaluation.distances.set_distances import SetDistance
from sr_dist.evaluation.report.attribute_tables import CONDITIONS, Table
from sr_dist.evaluation.report.report import Report


def markdown(report: Report) -> str:
    rows = [[escape(method), *_cells(report, method)] for method in report.order]
    blocks = [table(["method", *report.columns], rows), report.conditions()]
    if report.scores.distances:
        blocks += [
            _distances(report),
            "In brackets: 95 % intervals. The floor is the value of one half of HR against the other, each of n / 2.",
        ]
    if report.pairs and report.image_columns:
        blocks += [_differences(report), "Means over images of paired differences, with 95 % intervals."]
    blocks += [block for one in report.tables if not one.folded for block in _attributes(one)]
    blocks += [CONDITIONS] if report.tables else []
    blocks += [f"Not computed: {', '.join(columns)} ({reason})" for reason, columns in report.not_computed.items()]
    return "\n\n".join(blocks)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def _cells(report: Report, method: str) -> list[str]:
    return [report.cell(column, report.methods[method][column], report.best[column]) for column in report.columns]


def _distances(report: Report) -> str:
    distances = report.scores.distances
    head = [f"{column} (n {_n(one)}, floor {report.number(column, one.floor)})" for column, one in distances.items()]
    rows = [
        [escape(method), *(report.estimate(column, one.methods.get(method)) for column, one in distances.items())]
        for method in report.order
    ]
    return table(["method", *head], rows)


def _n(distance: SetDistance) -> str:
    return str(next((estimate.n for estimate in distance.methods.values()), "-"))


def _differences(report: Report) -> str:
    columns = report.image_columns
    rows = [[escape(pair), *(report.interval(column, values[column]) for column in columns)] for pair, values in
            report.pairs.items()]  # fmt: skip
    return table(["difference", *columns], rows)


def _attributes(one: Table) -> list[str]:
    cells = [[escape(cell.text) for cell in row] for row in one.rows]
    return [f"**{one.title}**", table([escape(name) for name in one.columns], cells), *([one.note] if one.note else [])]


def escape(name: str) -> str:
    return name.replace("|", "\\|")
