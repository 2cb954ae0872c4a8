"""``safeedit scorer check``: how far does a scorer agree with people?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeedit.cli.terminal import put, put_json
from safeedit.errors import SafeeditError, UsageError

if TYPE_CHECKING:
    from safeedit.contracts import BaseParams
    from safeedit.records import ScorerCard

_WORST = 5
"""Kinds of text that the screen shows, those with most errors."""


@click.group()
def scorer() -> None:
    """What toxicity scorers are worth."""


@scorer.command()
@click.argument("name")
@click.option(
    "--param",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the scorer, as in a policy; may be repeated.",
)
@click.option(
    "--hatecheck",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="HateCheck's test cases (default: looked for under SAFEEDIT_BENCHMARKS).",
)
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The card as JSON on stdout.")
@click.pass_obj
def check(
    screen: Any,
    name: str,
    settings: tuple[str, ...],
    hatecheck: Path | None,
    threshold: float,
    as_json: bool,
) -> None:
    """Measure the scorer NAME on texts labelled by people, and keep its card.

    The card is printed with every figure of the scorer; a policy may demand a least AUC
    ('min_auc').
    """
    from safeedit import catalog
    from safeedit.scorers.cards import labelled_sets, measure_card, write_card

    kind = catalog.scorer(name)
    made = kind(_params(kind.Params, settings))
    sets = labelled_sets(hatecheck)
    with screen.context(0) as ctx:
        card = measure_card(made, sets, threshold, ctx.progress)
        try:
            write_card(card, ctx.cache)
        except OSError as error:
            raise SafeeditError(
                f"the card can't be kept: {error.strerror}",
                file=ctx.cache,
                remedy="set SAFEEDIT_CACHE to a folder that can be written",
            ) from error
    if as_json:
        put_json(card.model_dump_json(indent=2))
    else:
        _show(card)
    if "hatecheck" not in card.checks:
        screen.warn(
            "HateCheck is not here: give its test_suite_cases.csv with --hatecheck, or set "
            "SAFEEDIT_BENCHMARKS"
        )


def _params(kind: type[BaseParams], settings: tuple[str, ...]) -> BaseParams:
    """Parameters given on the command line; values are read as YAML.

    Raises:
        UsageError: One is unknown, or not what belongs there.
    """
    import yaml
    from pydantic import ValidationError

    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--param {setting}: should be NAME=VALUE")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--param {key}: the value is not YAML") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(
            f"--param {'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy=f"parameters: {', '.join(kind.model_fields) or 'none'}",
        ) from None


def _show(card: ScorerCard) -> None:
    put(f"{card.name} {card.version}  {card.digest[:12]}  threshold {card.threshold:g}")
    for name, found in card.checks.items():
        put(f"{name}: {found.n_toxic} toxic, {found.n_harmless} harmless")
        put(
            f"  AUC {found.auc:.3f} [{found.auc_interval.low:.3f}, {found.auc_interval.high:.3f}]"
            f"  misses {_rate(found.miss_rate, found.miss_interval)}"
            f"  false alarms {_rate(found.false_alarm_rate, found.false_alarm_interval)}"
        )
        worst = sorted(found.errors_by_kind.items(), key=lambda kind: (-kind[1], kind[0]))
        for kind, share in worst[:_WORST]:
            if share > 0:
                put(f"  wrong on {share:.0%} of {kind}")


def _rate(value: float, interval: Any) -> str:
    return f"{value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
