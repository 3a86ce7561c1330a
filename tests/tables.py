"""The tables that a test run ends with: laws and how they fared, mutants and killers.

Rows travel as properties of each test's report, so that they arrive from every worker.
"""

from __future__ import annotations

from collections import defaultdict

LAW = "law"
KILL = "kill"
PARITY = "parity"


def law_row(result):
    return [result.law, result.examples, result.worst_error, result.tolerance]


def kill_row(mutant, law, result):
    return [mutant, law, result.examples, result.worst_error]


def parity_row(family, heads, about, error):
    return [family, heads, about, error]


def pytest_terminal_summary(terminalreporter):
    rows = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, row in report.user_properties:
                    rows[name].append(row)
    if rows[LAW]:
        terminalreporter.section("laws")
        _write_laws(terminalreporter, rows[LAW])
    if rows[KILL]:
        terminalreporter.section("mutants and their killers")
        _write_kills(terminalreporter, rows[KILL])
    if rows[PARITY]:
        terminalreporter.section("logits beside those of transformers")
        _write_parity(terminalreporter, rows[PARITY])


def _write_laws(terminal, rows):
    laws = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for name, examples, worst, tolerance in rows:
        law = laws[name]
        law[0] += 1
        law[1] += examples
        law[2], law[3] = max(law[2], worst), tolerance
    terminal.write_line(
        f"{'law':<24}{'subjects':>9}{'examples':>10}{'worst error':>13}{'allowed':>9}"
    )
    for name, (subjects, examples, worst, tolerance) in laws.items():
        terminal.write_line(
            f"{name:<24}{subjects:>9}{examples:>10}{worst:>13.1e}{tolerance:>9.0e}"
        )
    total = sum(examples for _, examples, _, _ in laws.values())
    terminal.write_line(f"{'all':<24}{'':>9}{total:>10}")


def _write_kills(terminal, rows):
    killers = defaultdict(list)
    for mutant, law, _, worst in rows:
        killers[mutant].append(f"{law} ({worst:.0e})")
    for mutant, laws in killers.items():
        terminal.write_line(f"{mutant:<44}killed by {', '.join(laws)}")
    terminal.write_line(f"{len(killers)} mutants, none survived")


def _write_parity(terminal, rows):
    worst = defaultdict(float)
    for *decoder, error in rows:
        worst[tuple(decoder)] = max(worst[tuple(decoder)], error)
    terminal.write_line(f"{'family':<14}{'heads':<14}{'worst error':>12}  decoder")
    for (family, heads, about), error in sorted(worst.items()):
        terminal.write_line(f"{family:<14}{heads:<14}{error:>12.1e}  {about}")
