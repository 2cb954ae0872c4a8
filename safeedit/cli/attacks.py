"""``safeedit attack``: a policy's attacks on a checkpoint, and what two checkpoints give away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from safeedit.cli.digest_key import digest_key
from safeedit.cli.options import json_option
from safeedit.cli.runs import attack as attack_model
from safeedit.cli.screen import Screen
from safeedit.cli.terminal import put_json

if TYPE_CHECKING:
    from safeedit.workflows.two_checkpoints import TwoCheckpoints

_OF_A_MODEL = "MODEL"


class AttackGroup(click.Group):
    """What follows ``attack`` is a model, unless it is the name of another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        others = self.commands.keys() - {_OF_A_MODEL}
        if args and args[0] not in {*others, *self.get_help_option_names(ctx)}:
            args = [_OF_A_MODEL, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _OF_A_MODEL else name), command, rest


@click.group(cls=AttackGroup)
def attack() -> None:
    """Attack an edited checkpoint: 'attack MODEL --policy POLICY' makes a policy's attacks."""


attack.add_command(attack_model, _OF_A_MODEL)


@attack.command("two-checkpoints")
@click.argument("edited")
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    required=True,
    help="Policy whose items are asked; its model is the untouched one.",
)
@click.option("--base", help="The untouched model, if it is another than the policy's.")
@click.option(
    "--guidance", default=1.0, show_default=True, type=click.FloatRange(0),
    help="How far answers are steered away from the edited model.",
)  # fmt: skip
@click.option(
    "--items", default=200, show_default=True, type=click.IntRange(3),
    help="To be erased, and to be kept, at most.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write to.")
@json_option
@click.pass_obj
def of_two_checkpoints(
    screen: Screen,
    /,
    edited: str,
    policy: Path,
    base: str | None,
    guidance: float,
    items: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what whoever holds EDITED and the model it was made from learns of what was erased.

    On the policy's own test items, beside a random change of equal size. Changes and exports
    nothing; what is written holds figures and no text.
    """
    from safeedit.cache import cache_dir
    from safeedit.model.sources import open_model
    from safeedit.planning.resolution import make_plan
    from safeedit.policy import load_policy
    from safeedit.workflows.two_checkpoints import two_checkpoints, write

    loaded = load_policy(policy)
    plan = make_plan(loaded, exporting=False, key=digest_key(cache_dir()))
    spec = loaded.policy.model
    with screen.context(loaded.policy.seed) as ctx:
        untouched = open_model(
            base or plan.model_source, revision=None if base else spec.revision, dtype=spec.dtype,
            device=spec.device, adapter=None if base else plan.adapter,
        )  # fmt: skip
        model = open_model(edited, dtype=spec.dtype, device=spec.device)
        found = two_checkpoints(plan, untouched, model, ctx, guidance=guidance, most=items)
    if out is not None:
        write(found, out)
    if as_json:
        put_json(found.model_dump_json(indent=2))
    _tell(screen, found)


_WORDS = {
    "answer_auc": "erased items told from kept ones, by question and answer (0.5: not at all)",
    "prompt_auc": "the same by the question alone",
    "singled_out": "erased items that stand out from 95 of 100 kept ones",
    "told_by_base": "answers told by the untouched model alone",
    "told_by_edited": "answers told by the edited model alone",
    "told_by_both": "answers told by the two together",
}


def _tell(screen: Screen, found: TwoCheckpoints) -> None:
    from safeedit.report.wording import estimate, number

    screen.say(
        f"{found.tensors_changed} tensors differ; {found.erased} items to be erased and "
        f"{found.kept} to be kept were asked"
    )
    for metric, control in zip(found.metrics, found.control, strict=True):
        what = _WORDS[metric.name.rpartition(".")[2]]
        screen.say(
            f"{what}: {estimate(metric.value, metric.interval)}; after a random change of equal "
            f"size {number(control.value)}"
        )
