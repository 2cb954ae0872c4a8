"""Keyed neurons: facts forgotten by neurons that fire at their subjects and nowhere else.

Values are those of ROME and MEMIT: for each subject the shift of what an MLP writes at its last
token after which its facts meet the target (:mod:`safeedit.methods.facts.editing`). They differ in
what brings the shift about. A *linear* key adds the shift in proportion to how much an input
resembles the subject, so that subjects alike feel a part of it. Here a little-used neuron is given
a *gated* key, which answers 1 at the subject and next to nothing elsewhere
(:mod:`safeedit.methods.facts.gated_keys`), and writes the shift. Others are spared by construction,
and only notice what the replaced neurons used to do; a layer's other neurons make up for some of it
as far as they foretell it. (Where they did not, near and far answers were kept alike.)

Keys are solved against the prompts to preserve and ordinary prose; where facts are put as plain
text to a model that has a chat template, against ordinary chat as well
(:mod:`safeedit.methods.facts.chat_texts`): nothing else would tell them from it.

A subject has one neuron and one value, in all of ``templates`` and for all of its facts;
``subjects_per_neuron`` lets several share them. With several layers the neurons are shared out
among them in turn, so that no layer gives up many. Preserved facts on a forgotten subject itself
are held by divergence while the value is learnt, and by nothing else.

Doses scale what is written. Fails with :class:`~safeedit.errors.DataError` where a subject is
missing or is not in its prompt, and with :class:`~safeedit.errors.EditError` where a subject can't
be told from other text or a layer has too few neurons.

Source: ours. One neuron for one mistake is Transformer-Patcher's idea (Huang et al., ICLR 2023,
arXiv 2301.09785), which adds neurons and trains them; these are there already, solved for their
keys, and the checkpoint keeps its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from safeedit.contracts import (
    PROSE,
    DataRole,
    EditData,
    LayerShape,
    Proposal,
    RunContext,
    TensorPlan,
)
from safeedit.data import Dataset, Item
from safeedit.data.subjects import check_subjects, same_subject
from safeedit.delta import Update
from safeedit.errors import DataError, EditError
from safeedit.methods.facts import gated_neurons as neurons
from safeedit.methods.facts.chat_texts import chat_texts
from safeedit.methods.facts.cues import (
    KEYS_ARE,
    NAMES,
    SPELLINGS_ARE,
    Cues,
    Keys,
    asked_by_cues,
    asked_of_others,
    check_names,
    cues_of,
    turned_round,
    warn_of_ends,
)
from safeedit.methods.facts.editing import Fact, FactEdit
from safeedit.methods.facts.keys import WINDOW, in_windows
from safeedit.methods.facts.settings import FactParams, value_tokens
from safeedit.methods.scaled import proposal_of
from safeedit.model.architectures import Site
from safeedit.model.handle import ModelHandle
from safeedit.model.spans import last_tokens, mentions
from safeedit.policy.layers import resolve

_OPENINGS = 6
"""Openings that a key is solved on, nothing first: a gated key must answer after all of them."""


class KeyedNeuronsParams(FactParams):
    """Parameters of keyed neurons."""

    target: Literal["unlikely", "entropy", "replace"] = Field(
        "unlikely",
        description="what is to follow: anything but the forgotten answer, anyone's guess, or the "
        "item's 'target_new' (an edit rather than an erasure); for a refusal see sanitation",
    )
    subjects_per_neuron: int = Field(
        1,
        ge=1,
        description="subjects that share one neuron and one value: more spare what the replaced "
        "neurons did, fewer make for smaller values and keys that tell subjects apart better; "
        "with 'keys: names' each has neurons of its own, in every layer",
    )
    keys: Keys = Field("subject", description=KEYS_ARE)
    spellings: int = Field(6, ge=0, le=32, description=f"'keys: names': {SPELLINGS_ARE}")
    doses: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.75, 1.0, 1.25, 1.5, 2.0),
        min_length=1,
        description="scales of what is written, ascending",
    )

    @model_validator(mode="before")
    @classmethod
    def _refusals_are_elsewhere(cls, given: Any) -> Any:
        if isinstance(given, dict) and (given.get("target") == "refusal" or "refusal" in given):
            raise ValueError(
                "keyed_neurons teaches no refusal: the editor 'sanitation' does, with 'update: "
                "keyed', by the same kind of neurons"
            )
        return given


class KeyedNeurons:
    """See the module's docstring."""

    Params = KeyedNeuronsParams
    summary: ClassVar[str] = "forgets facts by little-used neurons that fire at their subjects"
    results: ClassVar[str] = "erasure"
    measured: ClassVar[str] = (
        "Fifty facts at once: the answer is among the ten likeliest in 0.06 of unseen wordings, "
        "extracted in 0.01; 0.958 of near facts stay right, perplexity ratio 1."
    )
    roles: ClassVar[tuple[DataRole, ...]] = (
        DataRole("forget", "facts to change, each with its subject", erased=True),
        DataRole("preserve", "facts on subjects that must not fire", required=False),
        PROSE,
        NAMES,
    )

    def __init__(self, params: Any) -> None:
        self.params: KeyedNeuronsParams = params

    def touches(self, model: LayerShape) -> Sequence[TensorPlan]:
        """The MLPs of the chosen layers."""
        return neurons.tensors(model, resolve(self.params.layers, model.n_layers))

    def check_data(self, data: Mapping[str, Dataset]) -> None:
        """Refuse facts whose subject their prompt does not name, while planning."""
        check_subjects(data["forget"], inferred=self.params.keys == "subject")
        check_names(data.get("names"), self.params.keys)

    def tokens(self, data: Mapping[str, Dataset]) -> int:
        """Tokens run forward and back, roughly, for ``plan``."""
        return value_tokens(self.params, data["forget"])

    def propose(self, model: ModelHandle, data: EditData, ctx: RunContext) -> Proposal:
        """Solve for keys, learn values; offer the change in several strengths."""
        params = self.params
        sites = model.sites("mlp_out", resolve(params.layers, model.n_layers))
        road = _NeuronRoad("keyed_neurons", params, model, data, ctx, sites[0], _OPENINGS)
        keyed = road.by_names(sites) if params.keys == "names" else road.keyed(sites)

        def updates(dose: float) -> dict[str, Update]:
            return {name: update for each in keyed for name, update in each.updates(dose).items()}

        return proposal_of(
            "keyed_neurons", params, data["forget"], ctx, model.digest(), updates, road.notes
        )


class _NeuronRoad(FactEdit):
    """One proposal on its way; a group is what is to be forgotten of one subject."""

    params: KeyedNeuronsParams

    def _grouped(self, facts: Sequence[Fact], site: Site) -> list[list[Fact]]:
        groups: dict[str, list[Fact]] = {}
        for fact in facts:
            groups.setdefault(same_subject(fact.subject), []).append(fact)
        return list(groups.values())

    def keyed(self, sites: Sequence[Site]) -> list[neurons.GatedNeurons]:
        """The neurons of each layer that gets any, their values in them."""
        shape, params = self.model.shape, self.params
        texts = self._texts()
        found, learnt = [], []
        per_layer: dict[str, Any] = {}
        for place, site in enumerate(sites):
            chosen = range(place, len(self.groups), len(sites))
            count = -(-len(chosen) // params.subjects_per_neuron)
            if not chosen:
                continue
            if count > neurons.most(shape.d_mlp):
                raise EditError(
                    f"{len(self.groups)} subjects in {len(sites)} layers need {count} neurons of "
                    f"one, and {neurons.most(shape.d_mlp)} of its {shape.d_mlp} can be replaced",
                    remedy="name more 'layers', or raise 'subjects_per_neuron'",
                )
            keyed = neurons.GatedNeurons(
                self.model,
                [site.layer],
                [[_of(text, chosen) for text in group] for group in texts],
                per_layer=count,
                compensate=True,
                progress=self.ctx.progress,
            )
            if keyed.silent:
                self.ctx.warn(
                    f"keyed_neurons: {keyed.silent} of {len(chosen)} subjects of layer "
                    f"{site.layer} have a mention at which their neuron stays silent: what is "
                    "asked in such words is not forgotten"
                )
            # Subjects are shared out among a layer's neurons in turn.
            shared = [
                [fact for number in chosen[neuron::count] for fact in self.groups[number]]
                for neuron in range(count)
            ]
            values = self.values(site.layer, shared)
            keyed.write(site.layer, values.shifts)
            found.append(keyed)
            learnt.append(values)
            per_layer[str(site.layer)] = _of_layer(keyed)
        self.record_values(*learnt)
        self.notes |= {"subjects": len(self.groups), "layers": per_layer}
        return found

    def by_names(self, sites: Sequence[Site]) -> list[neurons.GatedNeurons]:
        """Neurons for all names of each subject in every layer; of one subject they all write
        what is learnt at its own name, and those of answers that identify it what makes the
        subject unlikely where it is asked for the other way round."""
        cues = cues_of(
            self.data["forget"],
            self.data.get("names"),
            spellings=self.params.spellings,
            seed=self.ctx.seed,
        )
        preserve = self.data.get("preserve")
        kept = () if preserve is None else preserve.items("fit")
        warn_of_ends("keyed_neurons", cues, kept, self.ctx.warn)
        texts = self._cue_texts(cues)
        facts = {same_subject(group[0].subject): group for group in self.groups}
        groups = [facts[same_subject(subject)] for subject in cues.subjects]
        place = {(number, False): number for number in range(len(groups))}
        kinds = list(zip(cues.families, cues.identifying, strict=True))
        for number in sorted({number for number, identifying in kinds if identifying}):
            place[number, True] = len(groups)
            groups.append(self._turned_round(cues.subjects[number]))
        found, learnt, per_layer = [], [], dict[str, Any]()
        for site in sites:
            keyed = neurons.GatedNeurons(
                self.model,
                [site.layer],
                texts,
                per_layer=len(cues.families),
                families=cues.families,
                compensate=True,
                progress=self.ctx.progress,
            )
            values = self.values(site.layer, groups)
            keyed.write(site.layer, values.shifts[[place[kind] for kind in kinds]])
            found.append(keyed)
            learnt.append(values)
            per_layer[str(site.layer)] = _of_layer(keyed)
        self.record_values(*learnt)
        self.notes |= {
            "subjects": len(cues.subjects), "names": len(cues.names), "layers": per_layer,
        }  # fmt: skip
        return found

    def _turned_round(self, subject: str) -> list[Fact]:
        """The facts about a subject as questions for it."""
        return [
            self._fact(item, item.subject or "", [item.prompt], template)
            for item in turned_round(self.data["forget"], subject)
            for template in self.templates
        ]

    def _cue_texts(self, cues: Cues) -> list[list[neurons.Text]]:
        """As :meth:`_texts`, with every cue."""
        tokenizer, engine = self.model.engine.codec.tokenizer, self.model.engine
        forget, preserve = self.data["forget"], self.data.get("preserve")
        asked = list(asked_by_cues(cues, forget, cased=self.params.spellings > 0))
        spots = [
            spot.ids for group in self.groups for fact in group for some in fact.contexts
            for spot in some
        ]  # fmt: skip
        kept = list(preserve.items("fit")) if preserve is not None else []
        named = [item for item in kept if item.subject]
        others = asked_of_others(cues, named, self.ctx.seed)
        groups: list[Sequence[Sequence[int]]] = [
            [*spots, *(ids for t in self.templates for ids in engine.encode(asked, t))],
            [ids for t in self.templates for ids in engine.encode(others, t)],
            in_windows(self.model, self.prose(), WINDOW)[0],
        ]
        if "chat" not in self.templates:
            groups.append(chat_texts(self.model, self.prose(), self.ctx.progress))
        texts = [[cues.text(tokenizer, ids) for ids in group] for group in groups]
        texts[1] += [
            cues.text(tokenizer, self._told_of(item, t), [item.subject] if item.subject else ())
            for t in self.templates
            for item in kept
        ]
        return [group for group in texts if group]

    def _told_of(self, item: Item, template: Literal["chat", "plain"]) -> list[int]:
        engine = self.model.engine
        (ids,) = engine.encode([item.prompt], template)
        return [*ids, *(engine.continuation(item.answer, template) if item.answer else [])]

    def _texts(self) -> list[list[neurons.Text]]:
        """Forget prompts after their openings, preserved ones, prose, chat; subjects by group
        number."""
        names = [group[0].subject for group in self.groups]
        tokenizer = self.model.engine.codec.tokenizer
        asked = [
            neurons.Text(spot.ids, mentions(tokenizer, spot.ids, names))
            for group in self.groups
            for fact in group
            for contexts in fact.contexts
            for spot in contexts
        ]
        named = {number for text in asked for _, number in text.own}
        if absent := len(names) - len(named):
            raise DataError(
                f"{absent} of {len(names)} subjects stand in their prompts only as the end of "
                "another subject",
                remedy="each prompt must contain its item's subject as written, and not only as "
                "the end of a longer one",
            )
        preserve = self.data.get("preserve")
        kept = [
            self._kept(item, template, names)
            for template in self.templates
            for item in (preserve.items("fit") if preserve is not None else ())
        ]
        ordinary = [
            neurons.Text(ids, mentions(tokenizer, ids, names))
            for ids in in_windows(self.model, self.prose(), WINDOW)[0]
        ]
        seen = "chat" in self.templates
        chat = [
            neurons.Text(ids, mentions(tokenizer, ids, names))
            for ids in ([] if seen else chat_texts(self.model, self.prose(), self.ctx.progress))
        ]
        return [group for group in (asked, kept, ordinary, chat) if group]

    def _kept(
        self, item: Item, template: Literal["chat", "plain"], names: Sequence[str]
    ) -> neurons.Text:
        """A preserved fact with its answer: what is said of others is no mention either, and few
        of those tokens stand in any prompt."""
        engine, ids = self.model.engine, self._told_of(item, template)
        own = mentions(engine.codec.tokenizer, ids, names)
        fires = {position for position, _ in own}
        subject = (item.subject or "").strip()
        others = last_tokens(engine.codec.tokenizer, ids, subject) if subject else ()
        return neurons.Text(ids, own, tuple(at for at in others if at not in fires))


def _of_layer(keyed: neurons.GatedNeurons) -> dict[str, Any]:
    """The notes of neurons that are in one layer alone."""
    return {
        name: next(iter(value.values())) if isinstance(value, dict) else value
        for name, value in keyed.notes().items()
    }


def _of(text: neurons.Text, chosen: range) -> neurons.Text:
    """The text as one layer sees it: subjects of another layer must not fire here."""
    own = tuple((at, chosen.index(number)) for at, number in text.own if number in chosen)
    others = tuple(at for at, number in text.own if number not in chosen)
    return neurons.Text(text.ids, own, (*text.others, *others))
